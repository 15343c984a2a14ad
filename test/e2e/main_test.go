// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

// Package e2e_test checks what applications see: real sockets in namespaces,
// through the loaded programs, with the compiler and the reconciler wired as in
// the agent but without one, so that a test decides when a change happens.
//
//	node "here"    pods p1, p2, p3 of Services, and the client pod
//	Services       10.96.0.0/16, fd00:10:96::/112; load balancer 203.0.113.0/24
package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

func TestMain(m *testing.M) {
	world.Main()
	if addrs := os.Getenv(alternateEnv); addrs != "" {
		if err := alternate(addrs); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// stage is a node with three serving pods, a client pod, and a dataplane.
type stage struct {
	t          *testing.T
	node       *world.Node
	pods       []*world.Pod
	clientPod  *world.Pod
	client     *world.Probe
	host       *world.Probe
	loader     *loader.Loader
	compiler   *compile.Compiler
	reconciler *reconcile.Reconciler
}

func newStage(t *testing.T) *stage {
	t.Helper()
	return newStageWith(t, loader.Config{})
}

// newStageWith is newStage with options of the loader.
func newStageWith(t *testing.T, options loader.Config) *stage {
	t.Helper()
	world.RequireRoot(t)
	w := world.NewT(t)
	s := &stage{t: t, node: world.Must(w.AddNode("here"))(t)}
	for i := range 3 {
		name := fmt.Sprintf("p%d", i+1)
		pod := world.Must(s.node.AddPod(name))(t)
		world.Must(pod.Serve(name, "tcp:8080", "udp:8080"))(t)
		s.pods = append(s.pods, pod)
	}
	s.clientPod = world.Must(s.node.AddPod("client"))(t)
	s.client = world.Must(s.clientPod.Probe())(t)
	s.host = world.Must(world.Must(s.node.Host("host"))(t).Probe())(t)
	s.wire(options)
	return s
}

// wire loads the dataplane inside the node's namespace, which is where an agent
// would run.
func (s *stage) wire(options loader.Config) {
	s.t.Helper()
	barrier := world.Must(maps.NewBarrier())(s.t)
	s.t.Cleanup(barrier.Close)
	err := s.node.Do(func() error {
		options.BPFFSRoot, options.CgroupRoot = s.node.BPFFS(), s.node.CgroupRoot()
		l, err := loader.Open(options)
		if err != nil {
			return err
		}
		s.loader = l
		facts, err := node.Read()
		if err != nil {
			return err
		}
		s.compiler = compile.New(compile.Config{Node: service.Node{Name: "here"}})
		s.reconciler, err = reconcile.New(reconcile.Config{
			Attach: l.Attach, Wait: barrier.Wait,
			Node: reconcile.Node{
				NodePortAddrs: node.Selection{}.NodePortAddrs(facts, nil),
				ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
				Source4:       s.node.IPv4(), Source6: s.node.IPv6(),
			},
		})
		if err != nil {
			return err
		}
		return s.reconciler.Apply(nil)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		s.loader.Close()
		if _, err := loader.Cleanup(s.node.BPFFS(), false); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *stage) apply(u compile.Update) {
	s.t.Helper()
	if err := s.reconciler.Apply(s.compiler.Apply(u)); err != nil {
		s.t.Fatal(err)
	}
}

var web = service.Name{Namespace: "default", Name: "web"}

// webService is a dual-stack Service with a TCP and a UDP port 80.
func webService() *service.Service {
	return &service.Service{
		Name: web, Type: service.NodePort,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")},
		Ports: []service.Port{
			{Name: "tcp", Protocol: service.TCP, Port: 80, NodePort: 30080},
			{Name: "udp", Protocol: service.UDP, Port: 80, NodePort: 30080},
		},
	}
}

// serve makes a Service with endpoints on the given pods.
func (s *stage) serve(svc *service.Service, pods ...*world.Pod) {
	s.t.Helper()
	endpoints := make([]service.Endpoint, len(pods))
	for i, p := range pods {
		endpoints[i] = ready(p)
	}
	s.serveEndpoints(svc, pods, endpoints)
}

func ready(p *world.Pod) service.Endpoint {
	return service.Endpoint{Addr: p.IPv4(), Ready: true, Serving: true, NodeName: "here"}
}

// serveEndpoints makes a Service with one slice per family; endpoints hold the
// conditions of the pods beside them.
func (s *stage) serveEndpoints(svc *service.Service, pods []*world.Pod, endpoints []service.Endpoint) {
	s.t.Helper()
	u := compile.Update{Services: map[service.Name]*service.Service{svc.Name: svc}, Slices: map[service.Name]*service.EndpointSlice{}}
	for _, family := range []service.Family{service.IPv4, service.IPv6} {
		slice := &service.EndpointSlice{
			Name:    service.Name{Namespace: svc.Namespace, Name: svc.Name.Name + family.String()},
			Service: svc.Name.Name, Family: family,
		}
		for _, p := range svc.Ports {
			slice.Ports = append(slice.Ports, service.SlicePort{Name: p.Name, Protocol: p.Protocol, Port: 8080})
		}
		for i, e := range endpoints {
			if family == service.IPv6 {
				e.Addr = pods[i].IPv6()
			}
			slice.Endpoints = append(slice.Endpoints, e)
		}
		u.Slices[slice.Name] = slice
	}
	s.apply(u)
}

// names dials and returns how often each server answered.
func (s *stage) names(p *world.Probe, proto, addr string, count int) map[string]int {
	s.t.Helper()
	report := world.Must(p.DialMany(proto, addr, count))(s.t)
	if report.Failed > 0 {
		s.t.Fatalf("%d of %d dials of %s %s failed, the first by %+v", report.Failed, report.Total, proto, addr, report.Failures[0])
	}
	return report.Backends
}

const short = 2 * time.Second

// impatient is for what nobody answers.
const impatient = 300 * time.Millisecond
