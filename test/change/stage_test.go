// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

// Package change_test runs real agents while the network of their node changes
// under traffic: routes, next hops, devices, pods that come and go.
//
//	client ── switch ─┬─ node "here"   pod near
//	                  │     │ eth1: a network of their own
//	                  └─ node "there"  pod far
//
// The nodes' routes to each other's pods lead through eth1 first.
package change_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/test/world"
)

var agentPath string

func TestMain(m *testing.M) {
	world.Main()
	dir, err := world.Build("portolan-agent")
	if err != nil {
		fmt.Fprintln(os.Stderr, "change:", err)
		os.Exit(2)
	}
	agentPath = filepath.Join(dir, "portolan-agent")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience is for what the agents have to notice first.
const patience = 15 * time.Second

// The nodes' ends of eth1.
var (
	hereEnd  = []netip.Prefix{netip.MustParsePrefix("10.250.0.1/30"), netip.MustParsePrefix("fd00:250::1/64")}
	thereEnd = []netip.Prefix{netip.MustParsePrefix("10.250.0.2/30"), netip.MustParsePrefix("fd00:250::2/64")}
)

// By eth1, and by eth0, which nobody takes while there is the other.
const (
	preferred = 0
	fallback  = 1 << 12
)

type stage struct {
	t           *testing.T
	world       *world.World
	here, there *world.Node
	near, far   *world.Pod
	client      *world.Probe
}

func newStage(t *testing.T, flags ...string) *stage {
	t.Helper()
	world.RequireRoot(t)
	s := &stage{t: t, world: world.NewT(t)}
	s.here, s.there = world.Must(s.world.AddNode("here"))(t), world.Must(s.world.AddNode("there"))(t)
	s.near, s.far = s.pod(s.here, "near"), s.pod(s.there, "far")
	host := world.Must(s.world.AddHost("client"))(t)
	s.client = world.Must(host.Probe())(t)
	s.world.LikeHardware(t, s.here.Namespace, s.there.Namespace, host.Namespace)
	s.join()
	for _, n := range []*world.Node{s.here, s.there} {
		s.startAgent(n, flags...)
	}
	s.serves(s.here, "eth0", "eth1")
	s.serves(s.there, "eth0", "eth1")
	return s
}

func (s *stage) pod(n *world.Node, name string) *world.Pod {
	s.t.Helper()
	pod := world.Must(n.AddPod(name))(s.t)
	world.Must(pod.Serve(name, "tcp:8080", "udp:8080"))(s.t)
	return pod
}

// join lays eth1 between the nodes, and routes by it. The old routes stay, for
// when it is gone.
func (s *stage) join() {
	s.t.Helper()
	s.must(s.here.Do(func() error {
		there, err := os.Open(s.there.Path())
		if err != nil {
			return err
		}
		defer there.Close()
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth1", PeerNamespace: netlink.NsFd(int(there.Fd()))}
		veth.Name = "eth1"
		return netlink.LinkAdd(veth)
	}))
	for _, n := range []*world.Node{s.here, s.there} {
		s.must(n.Do(func() error {
			own := hereEnd
			if n == s.there {
				own = thereEnd
			}
			return errors.Join(setUp("eth1", own), world.ComputeChecksums("eth1"),
				// A node whose link address changes says so.
				world.Sysctl("ipv4/conf/eth1/arp_notify", "1"), world.Sysctl("ipv6/conf/eth1/ndisc_notify", "1"))
		}))
	}
	// Not before both ends are up: the kernel would take the route at once.
	for _, n := range []*world.Node{s.here, s.there} {
		for _, by := range []string{"eth0", "eth1"} {
			s.route(n, by)
		}
	}
}

// route gives a node the routes to the other's pods by a device: preferred by
// eth1, a fallback by eth0.
func (s *stage) route(n *world.Node, device string) {
	s.t.Helper()
	other, next := s.there, thereEnd
	if n == s.there {
		other, next = s.here, hereEnd
	}
	via, metric := []netip.Addr{next[0].Addr(), next[1].Addr()}, preferred
	if device == "eth0" {
		via, metric = []netip.Addr{other.IPv4(), other.IPv6()}, fallback
	}
	v4, v6 := other.PodCIDRs()
	s.must(n.Do(func() error {
		var errs []error
		for i, to := range []netip.Prefix{v4, v6} {
			errs = append(errs, netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via[i].AsSlice(), Priority: metric}))
		}
		return errors.Join(errs...)
	}))
}

func setUp(name string, addrs []netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(a), Flags: noDAD}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

const noDAD = 2 // IFA_F_NODAD

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

const manifests = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: tcp, protocol: TCP, port: 80, nodePort: 30080}
  - {name: udp, protocol: UDP, port: 80, nodePort: 30080}
`

const sliceManifest = `
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-%s, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: %s
ports: [{name: tcp, protocol: TCP, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: ["%s"], conditions: {ready: true}, nodeName: there}]
`

// startAgent starts an agent whose only Service has the far pod as endpoint.
func (s *stage) startAgent(n *world.Node, flags ...string) {
	s.t.Helper()
	dir := filepath.Join(n.Dir(), "manifests")
	text := manifests + fmt.Sprintf(sliceManifest, "4", "IPv4", s.far.IPv4()) + fmt.Sprintf(sliceManifest, "6", "IPv6", s.far.IPv6())
	s.must(errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(text), 0o600)))
	args := append(n.AgentFlags(), "--manifests", dir, "--devices", "eth*", "--nodeport-addresses", "all")
	place := world.Must(n.Host("agent-" + n.Name()))(s.t)
	world.Must(place.Start(agentPath, append(args, flags...)...))(s.t)
}

// serves waits until a node's agent serves these outward devices and no others.
func (s *stage) serves(n *world.Node, names ...string) {
	s.t.Helper()
	s.eventually(func() error {
		var have []string
		err := n.Do(func() error {
			for _, d := range loader.PinnedDevices(n.BPFFS()) {
				if strings.HasPrefix(d.Name, "eth") {
					have = append(have, d.Name)
				}
			}
			return nil
		})
		if slices.Sort(have); err == nil && !slices.Equal(have, names) {
			err = fmt.Errorf("node %s serves %v, want %v", n.Name(), have, names)
		}
		return err
	})
}

func (s *stage) eventually(f func() error) {
	s.t.Helper()
	if err := world.Wait(patience, f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// nodePorts are the Service's addresses on the node "here".
func (s *stage) nodePorts() []string {
	return []string{netip.AddrPortFrom(s.here.IPv4(), 30080).String(), netip.AddrPortFrom(s.here.IPv6(), 30080).String()}
}

// traffic is what goes on while the network changes: new connections, and one
// of each kind that stays open.
type traffic struct {
	s       *stage
	hammers map[string]*world.Hammer
	conns   map[string]*world.Conn
	// lost is how often what is on its way may be lost: of UDP, a call in the
	// background and one in a connection each time.
	lost int
}

func (s *stage) begin() *traffic {
	s.t.Helper()
	f := &traffic{s: s, hammers: map[string]*world.Hammer{}, conns: map[string]*world.Conn{}}
	for _, addr := range s.nodePorts() {
		for _, proto := range []string{"tcp", "udp"} {
			s.eventually(func() error { return s.client.Dial(proto, addr, world.Timeout(time.Second)).Err() })
			f.conns[proto+" "+addr] = f.open(proto, addr)
			f.hammers[proto+" "+addr] = world.Must(s.client.Hammer(proto, addr, world.HammerConfig{
				Pause: 2 * time.Millisecond, Options: []world.Option{world.Timeout(lenient)}}))(s.t)
		}
	}
	f.goesOn()
	return f
}

// lenient lets TCP send a second SYN, and a third.
const lenient = 5 * time.Second

func (f *traffic) open(proto, addr string) *world.Conn {
	f.s.t.Helper()
	conn, r := f.s.client.Open(proto, addr, world.Timeout(lenient))
	if r.Err() != nil {
		f.s.t.Fatalf("%s %s: %v", proto, addr, r.Err())
	}
	return conn
}

// goesOn wants an answer on every connection that is open.
func (f *traffic) goesOn() {
	f.s.t.Helper()
	for name, conn := range f.conns {
		r := conn.Exchange()
		for tries := 0; r.Err() != nil && strings.HasPrefix(name, "udp") && tries < f.lost; tries++ {
			r = conn.Exchange()
		}
		if r.Err() != nil || r.Backend != "far" {
			f.s.t.Errorf("%s: %q, %v", name, r.Backend, r.Err())
		}
	}
}

// end wants no call to have failed.
func (f *traffic) end() {
	f.s.t.Helper()
	f.goesOn()
	for name, hammer := range f.hammers {
		allowed := 0
		if strings.HasPrefix(name, "udp") {
			allowed = f.lost
		}
		if r, err := hammer.Stop(); err != nil || r.Total == 0 || r.Failed > allowed {
			f.s.t.Errorf("%s: %v; %d of %d calls failed: %+v", name, err, r.Failed, r.Total, r.Failures)
		}
	}
	for _, conn := range f.conns {
		conn.Close()
	}
}
