// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

// Package wire_test checks what clients outside the cluster see: real sockets
// across a switch, through the programs on the nodes' devices, with the
// compiler and the reconciler wired as in the agent but without one.
//
//	client ── switch ─┬─ node "here"   pods near1, near2
//	                  └─ node "there"  pods far1, far2
//
// The client reaches load balancer addresses (203.0.113.0/24, 2001:db8:1b::/64)
// and the ClusterIPs by way of "here".
package wire_test

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

func TestMain(m *testing.M) {
	world.Main()
	os.Exit(m.Run())
}

// dataplane is what runs on one node.
type dataplane struct {
	*world.Node
	name       string
	loader     *loader.Loader
	compiler   *compile.Compiler
	reconciler *reconcile.Reconciler
	config     reconcile.Node
	devices    []loader.DeviceStatus
}

// stage is a client and a cluster of two nodes.
type stage struct {
	t         *testing.T
	world     *world.World
	here      *dataplane
	there     *dataplane
	near, far []*world.Pod
	host      *world.Host
	client    *world.Probe
}

// mode is a way in which packets are taken.
type mode struct {
	name string
	xdp  loader.XDPMode
	tcx  bool
}

var modes = []mode{
	{"tcx", loader.XDPDisabled, true},
	{"clsact", loader.XDPDisabled, false},
	{"xdp generic", loader.XDPGeneric, true},
	{"xdp native", loader.XDPNative, true},
}

// some are the modes that a test runs in: all, or in short one, another one on
// the oldest kernel than on later ones. Emulated guests run in short: there a
// test takes about as long as its programs take to load.
func some(t *testing.T, all ...mode) []mode {
	if !testing.Short() {
		return all
	}
	hash := fnv.New32a()
	hash.Write([]byte(t.Name()))
	at := int(hash.Sum32())
	if series, _ := kernel.Running(); series == kernel.Linux6_1 {
		at++
	}
	return all[at%len(all):][:1]
}

// serves is what has to serve the nodes' uplinks in this mode.
func (m mode) serves(t *testing.T) loader.DeviceStatus {
	t.Helper()
	want := loader.DeviceStatus{Name: "eth0", Hook: "clsact", XDP: "native"}
	if m.tcx && kernel.Has(t, kernel.TCX) {
		want.Hook = "tcx"
	}
	switch m.xdp {
	case loader.XDPDisabled:
		want.XDP = "none"
	case loader.XDPGeneric:
		want.XDP = "generic"
	}
	return want
}

func newStage(t *testing.T, m mode) *stage {
	t.Helper()
	world.RequireRoot(t)
	w := world.NewT(t)
	s := &stage{t: t, world: w}
	s.here = &dataplane{Node: world.Must(w.AddNode("here"))(t), name: "here"}
	s.there = &dataplane{Node: world.Must(w.AddNode("there"))(t), name: "there"}
	for i := range 2 {
		s.near = append(s.near, s.pod(s.here, fmt.Sprintf("near%d", i+1)))
		s.far = append(s.far, s.pod(s.there, fmt.Sprintf("far%d", i+1)))
	}
	s.host = world.Must(w.AddHost("client"))(t)
	s.routeBy(s.here, "203.0.113.0/24", "2001:db8:1b::/64", "10.96.0.0/16", "fd00:10:96::/112")
	w.LikeHardware(t, s.here.Namespace, s.there.Namespace, s.host.Namespace)
	s.client = world.Must(s.host.Probe())(t)
	s.start(s.here, m)
	s.start(s.there, m)
	return s
}

func (s *stage) pod(n *dataplane, name string) *world.Pod {
	s.t.Helper()
	pod := world.Must(n.AddPod(name))(s.t)
	world.Must(pod.Serve(name, "tcp:8080", "udp:8080"))(s.t)
	return pod
}

// routeBy makes the client send to networks by way of a node.
func (s *stage) routeBy(n *dataplane, networks ...string) {
	s.t.Helper()
	if err := s.host.RouteBy(n.Node, networks...); err != nil {
		s.t.Fatal(err)
	}
}

// start loads the dataplane inside a node's namespace, which is where an agent
// would run.
func (s *stage) start(n *dataplane, m mode) {
	s.t.Helper()
	s.run(n, m)
	s.t.Cleanup(func() {
		n.loader.Close()
		if err := n.Do(func() error {
			_, err := loader.Cleanup(n.BPFFS(), false)
			return err
		}); err != nil {
			s.t.Error(err)
		}
	})
	if want := m.serves(s.t); len(n.devices) != 1 || !reflect.DeepEqual(n.devices[0], want) {
		s.t.Fatalf("devices served: %+v, want %+v", n.devices, want)
	}
}

// run does what an agent does when it starts: it adopts what is there.
func (s *stage) run(n *dataplane, m mode) {
	s.t.Helper()
	barrier := world.Must(maps.NewBarrier())(s.t)
	s.t.Cleanup(barrier.Close)
	err := n.Do(func() error {
		var err error
		n.loader, err = loader.Open(loader.Config{
			BPFFSRoot: n.BPFFS(), CgroupRoot: n.CgroupRoot(), XDP: m.xdp, WithoutTCX: !m.tcx,
		})
		if err != nil {
			return err
		}
		facts, err := node.Read()
		if err != nil {
			return err
		}
		adopted, err := n.loader.Adopt()
		if err != nil && !errors.Is(err, maps.ErrNotPinned) {
			return err
		}
		if n.compiler == nil {
			n.compiler = compile.New(compile.Config{Node: service.Node{Name: n.name}})
		}
		n.config = reconcile.Node{
			NodePortAddrs: node.Selection{}.NodePortAddrs(facts, nil),
			Source4:       n.IPv4(), Source6: n.IPv6(),
			Masquerade: reconcile.PortRange{First: 49152, Last: 65535},
		}
		n.reconciler, err = reconcile.New(reconcile.Config{Attach: n.loader.Attach, Wait: barrier.Wait, Adopted: adopted, Node: n.config})
		if err != nil {
			return err
		}
		if err := n.reconciler.Apply(n.everything()); err != nil {
			return err
		}
		return n.attachDevices()
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// everything is all that is compiled, as for a reconciler that knows nothing.
func (n *dataplane) everything() []compile.Change {
	var changes []compile.Change
	for p := range n.compiler.Ports() {
		changes = append(changes, compile.Change{ID: p.ID, Port: p, All: true})
	}
	return changes
}

// attachDevices serves the node's outward devices as they are now.
func (n *dataplane) attachDevices() error {
	links, err := node.ReadLinks()
	if err != nil {
		return err
	}
	var devices []loader.Device
	for _, l := range node.Outward(links, nil) {
		devices = append(devices, loader.Device{Index: l.Index, Name: l.Name, LinkHeader: l.LinkHeader})
	}
	n.devices = n.loader.SetDevices(devices)
	return nil
}

var web = service.Name{Namespace: "default", Name: "web"}

// webService is a dual-stack Service with everything that can be reached from
// outside.
func webService() *service.Service {
	return &service.Service{
		Name: web, Type: service.LoadBalancer,
		ClusterIPs:      []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")},
		LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:1b::10")},
		ExternalIPs:     []netip.Addr{netip.MustParseAddr("203.0.113.20"), netip.MustParseAddr("2001:db8:1b::20")},
		Ports: []service.Port{
			{Name: "tcp", Protocol: service.TCP, Port: 80, NodePort: 30080},
			{Name: "udp", Protocol: service.UDP, Port: 80, NodePort: 30080},
		},
	}
}

// serve makes a Service with endpoints on the given pods, on both nodes.
func (s *stage) serve(svc *service.Service, pods ...*world.Pod) {
	s.t.Helper()
	s.serveOn([]*dataplane{s.here, s.there}, svc, pods...)
}

// serveOn is serve where only some nodes know the Service.
func (s *stage) serveOn(nodes []*dataplane, svc *service.Service, pods ...*world.Pod) {
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
		for _, pod := range pods {
			e := service.Endpoint{Addr: pod.IPv4(), Ready: true, Serving: true, NodeName: "here"}
			if pod.Node() == s.there.Node {
				e.NodeName = "there"
			}
			if family == service.IPv6 {
				e.Addr = pod.IPv6()
			}
			slice.Endpoints = append(slice.Endpoints, e)
		}
		u.Slices[slice.Name] = slice
	}
	for _, n := range nodes {
		if err := n.Do(func() error { return n.reconciler.Apply(n.compiler.Apply(u)) }); err != nil {
			s.t.Fatal(err)
		}
	}
}

// frontends are all ways to reach the Service from outside, of both families.
func (s *stage) frontends() map[string]string {
	return map[string]string{
		"NodePort IPv4":     netip.AddrPortFrom(s.here.IPv4(), 30080).String(),
		"NodePort IPv6":     netip.AddrPortFrom(s.here.IPv6(), 30080).String(),
		"LoadBalancer IPv4": "203.0.113.10:80",
		"LoadBalancer IPv6": "[2001:db8:1b::10]:80",
		"external IP IPv4":  "203.0.113.20:80",
		"external IP IPv6":  "[2001:db8:1b::20]:80",
	}
}

const short = 2 * time.Second
