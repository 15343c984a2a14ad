// SPDX-License-Identifier: Apache-2.0

// Package cluster puts a whole Kubernetes cluster together for tests and
// benchmarks: a world of network namespaces, a real control plane on a host of
// its own, nodes with a kubelet, and a service dataplane on each node: the
// Portolan agent, or kube-proxy as the reference that shows what Kubernetes
// itself does.
//
// It may import test/world, its siblings, client-go and the standard library.
//
// Invariant: what a test sees went the real way. The dataplane learns of the
// Services from the API server alone, and every connection is a socket of a
// process that lives in a pod's (or the node's) namespace and cgroup.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"portolan.dev/portolan/test/k8s/controlplane"
	"portolan.dev/portolan/test/k8s/kubelet"
	"portolan.dev/portolan/test/world"
)

const (
	// APIServerPort is where the nodes find the API server.
	APIServerPort = 6443
	// OtherAPIServerPort is where they do not look for it; see
	// controlplane.Plane.StartAPIServerOn.
	OtherAPIServerPort = 7443
	// startLimit bounds the start of the control plane.
	startLimit = 2 * time.Minute
)

// Config describes a Cluster.
type Config struct {
	// ControlPlane is the kcp binary.
	ControlPlane string
	// Nodes are the nodes' names, at least one.
	Nodes []string
	// Log takes what kubelets and the scheduler cannot do.
	Log *slog.Logger
}

// Cluster is a running cluster. Its methods may be called concurrently, those
// of Plane may not.
type Cluster struct {
	World  *world.World
	Plane  *controlplane.Plane
	Client kubernetes.Interface // Of the usual port.
	Nodes  []*Node
	// Outside is a machine that is no part of the cluster.
	Outside *world.Host

	cfg    Config
	host   *world.Host        // the control plane's
	cancel context.CancelFunc // ends kubelets and the scheduler
	wg     sync.WaitGroup
}

// Start builds a cluster and returns when its nodes are registered. No
// dataplane runs on them yet: see Node.StartDataplane.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	w, err := world.New()
	if err != nil {
		return nil, err
	}
	c := &Cluster{World: w, cfg: cfg}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	var err error
	if c.host, err = c.World.AddHost("control-plane"); err != nil {
		return err
	}
	if c.Outside, err = c.World.AddHost("outside"); err != nil {
		return err
	}
	for _, name := range c.cfg.Nodes {
		n, err := c.newNode(name)
		if err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, n)
	}
	if err := c.routeToPods(); err != nil {
		return err
	}
	if err := c.startPlane(ctx); err != nil {
		return err
	}
	return c.startNodes(ctx)
}

// routeToPods lets the control plane answer clients in pods.
func (c *Cluster) routeToPods() error {
	return c.host.Do(func() error {
		for _, n := range c.Nodes {
			v4, _ := n.PodCIDRs()
			dst := &net.IPNet{IP: v4.Addr().AsSlice(), Mask: net.CIDRMask(v4.Bits(), 32)}
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: n.IPv4().AsSlice()}); err != nil {
				return fmt.Errorf("add route to %s: %w", v4, err)
			}
		}
		return nil
	})
}

func (c *Cluster) startPlane(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var err error
	c.Plane, err = controlplane.Start(ctx, controlplane.Config{
		Binary:  c.cfg.ControlPlane,
		Dir:     filepath.Join(c.World.Dir(), "control-plane"),
		Address: c.host.IPv4(),
		Port:    APIServerPort,
		Start:   starter(c.host.Place),
		Dial:    dialer(c.host.Namespace),
	})
	if err != nil {
		return err
	}
	c.Client, err = c.Plane.Client()
	return err
}

// startNodes registers the nodes and starts kubelets and the scheduler.
func (c *Cluster) startNodes(ctx context.Context) error {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	for _, n := range c.Nodes {
		k := kubelet.New(c.Client, kubelet.Node{
			Name:      n.Name(),
			Addresses: []netip.Addr{n.IPv4(), n.IPv6()},
		}, n, c.cfg.Log)
		if err := k.Register(ctx); err != nil {
			return err
		}
		c.wg.Go(func() { k.Run(running) })
	}
	c.wg.Go(func() { kubelet.Schedule(running, c.Client, c.cfg.Nodes, c.cfg.Log) })
	return nil
}

// AwaitNodes takes the place of an API server that was killed and returns when
// a client on every node has tried to reach it. They get nothing but a closed
// connection. It shows that the dataplanes run and have found no API server.
func (c *Cluster) AwaitNodes(ctx context.Context) error {
	var l net.Listener
	err := c.host.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(c.host.IPv4(), APIServerPort).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("await nodes: %w", err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	missing := map[string]bool{}
	for _, n := range c.Nodes {
		missing[n.IPv4().String()] = true
	}
	for len(missing) > 0 {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("await nodes: %w; missing %v", err, slices.Collect(maps.Keys(missing)))
		}
		from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		delete(missing, from)
		conn.Close()
	}
	return nil
}

// CutOff takes the way between the nodes and the control plane away, or gives it
// back. The kubelets, which are no processes of a node, keep theirs.
func (c *Cluster) CutOff(cut bool) error {
	unreachable := func(from *world.Namespace, to netip.Addr) error {
		return from.Do(func() error {
			dst := &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(32, 32)}
			route := &netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}
			if cut {
				return netlink.RouteReplace(route)
			}
			if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			return nil
		})
	}
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, unreachable(n.Namespace, c.host.IPv4()), unreachable(c.host.Namespace, n.IPv4()))
	}
	return errors.Join(errs...)
}

// Close ends everything. The pods' processes go with the world.
func (c *Cluster) Close() error {
	if c.cancel != nil {
		c.cancel()
		c.wg.Wait()
	}
	if c.Plane != nil {
		c.Plane.Stop()
	}
	return c.World.Close()
}

// dialer dials from inside a namespace. The standard library makes the socket
// in the calling goroutine, and a socket stays where it was made.
func dialer(ns *world.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Do(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}
