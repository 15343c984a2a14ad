// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The cluster that a Plane serves. Addresses of Services come from these
// ranges, which are also what its default ServiceCIDR object holds.
const (
	ServiceCIDR4 = "10.96.0.0/16"
	ServiceCIDR6 = "fd00:10:96::/112"
	ClusterCIDR4 = "10.244.0.0/16"
	ClusterCIDR6 = "fd00:10:244::/56"
)

const (
	etcdPort     = 2379
	etcdPeerPort = 2380
	kcmPort      = 10257 // The controller manager's health port.
	// adminToken is fixed: the API server is reachable from the test's own
	// namespaces only.
	adminToken = "portolan-test"
)

// Config says where a Plane runs. Every field is required.
type Config struct {
	// Binary is the multicall binary built from ../kcp.
	Binary string
	// Dir takes state, certificates, kubeconfig and logs.
	Dir string
	// Address is what the API server binds and what its clients dial. etcd and
	// the controller manager stay on the loopback of the same namespace, so
	// ports are fixed: a namespace holds one Plane.
	Address netip.Addr
	// Port is the API server's.
	Port uint16
	// Start starts a child in the control plane's namespace.
	Start StartFunc
	// Dial reaches Address from the test process.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Plane is a running control plane. Its methods are not for concurrent use.
type Plane struct {
	cfg       Config
	port      uint16 // The API server's present port.
	etcd      *process
	apiserver *process
	kcm       *process
}

// Start brings up etcd, the API server and the controller manager and returns
// when all of them are ready.
func Start(ctx context.Context, cfg Config) (*Plane, error) {
	p := &Plane{cfg: cfg, port: cfg.Port}
	if err := p.start(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func (p *Plane) start(ctx context.Context) error {
	if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := p.writeCredentials(); err != nil {
		return err
	}
	var err error
	p.etcd, err = startProcess(p.cfg.Start, p.cfg.Dir, "etcd", p.cfg.Binary, "etcd",
		filepath.Join(p.cfg.Dir, "etcd"),
		fmt.Sprintf("http://127.0.0.1:%d", etcdPort), fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort))
	if err != nil {
		return err
	}
	if err := p.StartAPIServer(ctx); err != nil {
		return err
	}
	return p.startControllerManager(ctx)
}

// Stop ends all children, in the reverse order of their start.
func (p *Plane) Stop() {
	// None of them has anything to save, and graceful ends take seconds.
	p.kcm.kill()
	p.apiserver.kill()
	p.etcd.kill()
}

// KillAPIServer ends the API server at once, as a crash would.
func (p *Plane) KillAPIServer() {
	p.apiserver.kill()
}

// StartAPIServer starts the API server on its usual port and waits for it.
func (p *Plane) StartAPIServer(ctx context.Context) error {
	return p.StartAPIServerOn(ctx, p.cfg.Port)
}

// StartAPIServerOn starts the API server on another port, where only the
// clients of Client and RESTConfig find it: a client with the kubeconfig still
// sees an API server that is away. The former server must have been killed.
func (p *Plane) StartAPIServerOn(ctx context.Context, port uint16) error {
	p.port = port
	var err error
	p.apiserver, err = startProcess(p.cfg.Start, p.cfg.Dir, "kube-apiserver", p.cfg.Binary, p.apiServerArgs()...)
	if err != nil {
		return err
	}
	url := fmt.Sprintf("https://%s/readyz", p.hostPort(port))
	return p.waitHealthy(ctx, p.apiserver, url)
}

func (p *Plane) startControllerManager(ctx context.Context) error {
	var err error
	p.kcm, err = startProcess(p.cfg.Start, p.cfg.Dir, "kube-controller-manager", p.cfg.Binary, p.controllerManagerArgs()...)
	if err != nil {
		return err
	}
	url := fmt.Sprintf("https://%s/healthz", p.hostPort(kcmPort))
	return p.waitHealthy(ctx, p.kcm, url)
}

// Kubeconfig is the path of an admin's kubeconfig for the usual port.
func (p *Plane) Kubeconfig() string {
	return filepath.Join(p.cfg.Dir, "kubeconfig")
}

// RESTConfig is an admin's client configuration without rate limit, for the
// API server's present port.
func (p *Plane) RESTConfig() *rest.Config {
	return &rest.Config{
		Host:            "https://" + p.hostPort(p.port),
		BearerToken:     adminToken,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		Dial:            p.cfg.Dial,
		QPS:             -1,
		WarningHandler:  rest.NoWarnings{}, // Deprecated fields are tested on purpose.
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
	}
}

// Client is an admin's clientset for the API server's present port.
func (p *Plane) Client() (*kubernetes.Clientset, error) {
	cs, err := kubernetes.NewForConfig(p.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("make clientset: %w", err)
	}
	return cs, nil
}

func (p *Plane) hostPort(port uint16) string {
	return netip.AddrPortFrom(p.cfg.Address, port).String()
}

// pollInterval is how often a health endpoint is asked during a start.
const pollInterval = 50 * time.Millisecond
