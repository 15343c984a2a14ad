// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// vips are the ways to name the Service.
var vips = []struct {
	name, addr string
	options    []world.Option
}{
	{"IPv4", "10.96.0.10:80", nil},
	{"IPv6", "[fd00:10:96::10]:80", nil},
	{"IPv4-mapped", "10.96.0.10:80", []world.Option{world.Mapped()}},
}

func TestConnectionsSpreadOverAllEndpoints(t *testing.T) {
	s := newStage(t)
	s.serve(webService(), s.pods...)
	for _, vip := range vips {
		for _, proto := range []string{"tcp", "udp"} {
			report := world.Must(s.client.DialMany(proto, vip.addr, 120, vip.options...))(t)
			if report.Failed > 0 || len(report.Backends) != 3 {
				t.Errorf("%s %s: %d failed, answers %v", vip.name, proto, report.Failed, report.Backends)
			}
		}
	}
}

func TestSocketsKeepTheNameTheyWereGiven(t *testing.T) {
	s := newStage(t)
	s.serve(webService(), s.pods...)
	for _, vip := range vips {
		for _, proto := range []string{"tcp", "udp"} {
			r := s.client.Dial(proto, vip.addr, vip.options...)
			if err := r.Err(); err != nil {
				t.Errorf("%s %s: %v", vip.name, proto, err)
				continue
			}
			if want := netip.MustParseAddrPort(vip.addr); netip.AddrPortFrom(r.Peer.Addr().Unmap(), r.Peer.Port()) != want {
				t.Errorf("%s %s: getpeername says %s, not %s", vip.name, proto, r.Peer, want)
			}
		}
		r := s.client.Dial("udp", vip.addr, append([]world.Option{world.Unconnected()}, vip.options...)...)
		if want := netip.MustParseAddrPort(vip.addr); r.Err() != nil || netip.AddrPortFrom(r.From.Addr().Unmap(), r.From.Port()) != want {
			t.Errorf("%s: recvfrom says %s, not %s (%v)", vip.name, r.From, want, r.Err())
		}
	}
}

// One errno a reason: docs/architecture.md lists them for operators.
func TestWhatCannotBeServedFailsAtOnceAndSaysWhy(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.Ports = svc.Ports[:1]
	elsewhere := ready(s.pods[0])
	elsewhere.NodeName = "there"
	for _, c := range []struct {
		name, proto, addr string
		prepare           func()
		want              syscall.Errno
	}{
		{"no endpoint", "tcp", "10.96.0.10:80", func() { s.serve(svc) }, syscall.ECONNREFUSED},
		{"no endpoint, IPv6", "tcp", "[fd00:10:96::10]:80", nil, syscall.ECONNREFUSED},
		{"a port the Service does not have", "tcp", "10.96.0.10:81", nil, syscall.ECONNREFUSED},
		{"a protocol the Service does not have", "udp", "10.96.0.10:80", nil, syscall.ECONNREFUSED},
		{"an address no Service has", "tcp", "10.96.9.9:80", nil, syscall.ENETUNREACH},
		{"an IPv6 address no Service has", "tcp", "[fd00:10:96::99]:80", nil, syscall.ENETUNREACH},
		{"policy Local and endpoints elsewhere", "tcp", "10.96.0.10:80", func() {
			local := *svc
			local.InternalLocal = true
			s.serveEndpoints(&local, s.pods[:1], []service.Endpoint{elsewhere})
		}, syscall.EHOSTUNREACH},
		{"not ready and not terminating", "tcp", "10.96.0.10:80", func() {
			s.serveEndpoints(svc, s.pods[:1], []service.Endpoint{{Addr: s.pods[0].IPv4(), Serving: true}})
		}, syscall.ECONNREFUSED},
	} {
		if c.prepare != nil {
			c.prepare()
		}
		for who, probe := range map[string]*world.Probe{"pod": s.client, "host": s.host} {
			r := probe.Dial(c.proto, c.addr, world.Timeout(short))
			if r.Stage != "connect" || r.Errno != c.want {
				t.Errorf("%s, from the %s: %s fails with %v, not connect with %v", c.name, who, r.Stage, r.Errno, c.want)
			}
		}
	}
	denied := s.denied()
	for _, reason := range []string{"no-endpoint", "no-local-endpoint", "no-such-port", "no-service"} {
		if denied[reason] == 0 {
			t.Errorf("reason %s was not counted: %v", reason, denied)
		}
	}
}

// denied counts the calls that were refused, by reason.
func (s *stage) denied() map[string]uint64 {
	s.t.Helper()
	out := map[string]uint64{}
	for _, d := range world.Must(s.reconciler.Tables().Denied())(s.t) {
		out[d.Reason] = d.Count
	}
	return out
}

func TestTheLastTerminatingEndpointKeepsReceiving(t *testing.T) {
	s := newStage(t)
	s.serveEndpoints(webService(), s.pods[:2], []service.Endpoint{
		{Addr: s.pods[0].IPv4(), Serving: true, Terminating: true, NodeName: "here"},
		{Addr: s.pods[1].IPv4(), Terminating: true, NodeName: "here"},
	})
	if got := s.names(s.client, "tcp", "10.96.0.10:80", 20); got["p1"] != 20 {
		t.Errorf("answers %v, want all from p1", got)
	}
}

func TestNodePortsAnswerOnEveryAddressOfTheNode(t *testing.T) {
	s := newStage(t)
	s.serve(webService(), s.pods...)
	for _, addr := range []string{"127.0.0.1:30080", "[::1]:30080", netip.AddrPortFrom(s.node.IPv4(), 30080).String(), netip.AddrPortFrom(s.node.IPv6(), 30080).String()} {
		for _, proto := range []string{"tcp", "udp"} {
			if r := s.host.Dial(proto, addr); r.Err() != nil {
				t.Errorf("%s %s: %v", proto, addr, r.Err())
			}
		}
	}
	if r := s.client.Dial("tcp", netip.AddrPortFrom(s.node.IPv4(), 30080).String()); r.Err() != nil {
		t.Errorf("from a pod: %v", r.Err())
	}
	// Loopback of a pod is the pod: nothing listens there.
	if r := s.client.Dial("tcp", "127.0.0.1:30080", world.Timeout(short)); r.Errno != syscall.ECONNREFUSED {
		t.Errorf("a pod's own loopback: %s %v, backend %q", r.Stage, r.Errno, r.Backend)
	}
	if denied := s.denied(); denied["no-such-port"] > 0 {
		t.Errorf("calls were denied, %v, want none: loopback of a pod is not ours", denied)
	}
}

func TestBindingANodePortInUseFailsOnTheHostOnly(t *testing.T) {
	s := newStage(t)
	s.serve(webService(), s.pods...)
	for _, addr := range []string{"0.0.0.0:30080", "[::]:30080", "127.0.0.1:30080"} {
		if r := s.host.Bind("tcp", addr); r.Errno != syscall.EADDRINUSE {
			t.Errorf("bind %s on the host: %v, want EADDRINUSE", addr, r.Errno)
		}
	}
	if r := s.host.Bind("tcp", "0.0.0.0:30081"); r.Err() != nil {
		t.Errorf("bind of another port: %v", r.Err())
	}
	if r := s.client.Bind("tcp", "0.0.0.0:30080"); r.Err() != nil {
		t.Errorf("bind in a pod: %v", r.Err())
	}
}

func TestAClientWithAffinityStaysWithItsEndpoint(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.Affinity = time.Hour
	s.serve(svc, s.pods...)
	first := s.client.Dial("tcp", "10.96.0.10:80")
	if got := s.names(s.client, "tcp", "10.96.0.10:80", 15); got[first.Backend] != 15 {
		t.Errorf("answers %v after the first from %s", got, first.Backend)
	}
	// Its endpoint goes: another one, for good.
	var rest []*world.Pod
	for i, p := range s.pods {
		if first.Backend != []string{"p1", "p2", "p3"}[i] {
			rest = append(rest, p)
		}
	}
	s.serve(svc, rest...)
	if got := s.names(s.client, "tcp", "10.96.0.10:80", 15); len(got) != 1 || got[first.Backend] > 0 {
		t.Errorf("answers %v after %s went, want one other", got, first.Backend)
	}
	svc = webService()
	s.serve(svc, s.pods...)
	if got := s.names(s.client, "tcp", "10.96.0.10:80", 60); len(got) != 3 {
		t.Errorf("answers %v without affinity, want all three", got)
	}
}

// A client is a network namespace: one that is spread anew does not take others
// with it.
func TestEachClientWithAffinityHasAnEndpointOfItsOwn(t *testing.T) {
	s := newStage(t)
	other := world.Must(world.Must(s.node.AddPod("other"))(t).Probe())(t)
	svc := webService()
	svc.Affinity = time.Hour
	for _, addr := range []string{"10.96.0.10:80", "[fd00:10:96::10]:80"} {
		s.serve(svc, s.pods...)
		bound := map[*world.Probe]string{s.client: s.bound(s.client, addr)}
		// The endpoint of the one takes no new clients while the other comes.
		endpoints := make([]service.Endpoint, len(s.pods))
		for i, p := range s.pods {
			endpoints[i] = ready(p)
			if fmt.Sprintf("p%d", i+1) == bound[s.client] {
				endpoints[i].Ready, endpoints[i].Terminating = false, true
			}
		}
		s.serveEndpoints(svc, s.pods, endpoints)
		bound[other] = s.bound(other, addr)
		if bound[other] == bound[s.client] {
			t.Fatalf("%s: a new client got %s, which terminates", addr, bound[other])
		}
		s.serve(svc, s.pods...)
		for range 2 {
			for client, want := range bound {
				if got := s.names(client, "tcp", addr, 5); got[want] != 5 {
					t.Errorf("%s: answers %v, want all from %s", addr, got, want)
				}
			}
		}
	}
}

// bound is the endpoint that a client gets with its next dial.
func (s *stage) bound(client *world.Probe, addr string) string {
	s.t.Helper()
	r := client.Dial("tcp", addr)
	if err := r.Err(); err != nil {
		s.t.Fatalf("dial %s: %v", addr, err)
	}
	return r.Backend
}

// Of a hundred endpoints, whoever is spread anew gets another one. A client is
// when it was away for longer than the timeout, which use begins anew.
func TestAffinityLastsWhileItIsUsedAndEndsWithItsTimeout(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.Affinity = world.Scaled(time.Second).Truncate(time.Second)
	s.serveCrowd(svc)
	const addr = "10.96.0.10:80"
	timeout := uint64(svc.Affinity)
	began := coarse(t)
	used, have := began, s.bound(s.client, addr)
	for used-began < 2*timeout {
		s.passes(used + timeout*6/10)
		before := used
		used = coarse(t)
		got := s.bound(s.client, addr)
		if coarse(t)-before >= timeout { // this machine was away for too long, so begin anew
			began, have = used, got
		} else if got != have {
			t.Fatalf("%s answers after %s, %v after the last use", got, have, time.Duration(used-before))
		}
	}
	for tries := 0; ; tries++ {
		s.passes(coarse(t) + timeout)
		if got := s.bound(s.client, addr); got != have {
			return
		}
		if tries == 3 { // one in a hundred million
			t.Fatalf("still %s after the timeout passed %d times", have, tries+1)
		}
	}
}

// serveCrowd makes a Service with a hundred endpoints, all of which the client's
// own pod answers for.
func (s *stage) serveCrowd(svc *service.Service) {
	s.t.Helper()
	world.Must(s.clientPod.Serve(world.AddressCalled, "tcp:8080"))(s.t)
	err := s.clientPod.Do(func() error {
		const loopback = 1
		return netlink.RouteReplace(&netlink.Route{LinkIndex: loopback, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
			Dst: &net.IPNet{IP: net.IPv4(10, 245, 0, 0), Mask: net.CIDRMask(24, 32)}})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	slice := &service.EndpointSlice{
		Name: svc.Name, Service: svc.Name.Name, Family: service.IPv4,
		Ports: []service.SlicePort{{Name: "tcp", Protocol: service.TCP, Port: 8080}},
	}
	for i := range 100 {
		addr := netip.AddrFrom4([4]byte{10, 245, 0, byte(1 + i)})
		slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: addr, Ready: true, Serving: true, NodeName: "here"})
	}
	s.apply(compile.Update{
		Services: map[service.Name]*service.Service{svc.Name: svc},
		Slices:   map[service.Name]*service.EndpointSlice{slice.Name: slice},
	})
}

// passes waits until a time on the clock that the programs read has passed.
func (s *stage) passes(at uint64) {
	s.t.Helper()
	world.Eventually(s.t, func() error {
		if now := coarse(s.t); now <= at {
			return fmt.Errorf("%v are left", time.Duration(at-now))
		}
		return nil
	})
}

// coarse is the clock that the programs read.
func coarse(t *testing.T) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// A load balancer that wants to see all traffic itself (ipMode Proxy) is left
// its address; one that does not (VIP) is short-circuited.
func TestAddressesOfAProxyingLoadBalancerAreLeftToIt(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.Type = service.LoadBalancer
	svc.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.10")}
	svc.ProxyIPs = []netip.Addr{netip.MustParseAddr("203.0.113.20")}
	s.serve(svc, s.pods...)
	s.answerAt("203.0.113.20", 80, "balancer")
	for who, probe := range map[string]*world.Probe{"pod": s.client, "host": s.host} {
		if r := probe.Dial("tcp", "203.0.113.10:80"); r.Err() != nil {
			t.Errorf("%s, ipMode VIP: %v", who, r.Err())
		}
		if r := probe.Dial("tcp", "203.0.113.20:80", world.Timeout(short)); r.Backend != "balancer" {
			t.Errorf("%s, ipMode Proxy: %v, want the answer of the load balancer", who, r)
		}
	}
	svc = webService()
	svc.Type = service.LoadBalancer
	svc.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.20")}
	s.serve(svc, s.pods...)
	if r := s.client.Dial("tcp", "203.0.113.20:80"); r.Err() != nil || r.Backend == "balancer" {
		t.Errorf("after it became ipMode VIP: %v", r)
	}
}

// answerAt gives the node an address, and a server there: whoever has it in place
// of a Service.
func (s *stage) answerAt(addr string, port int, name string) {
	s.t.Helper()
	err := s.node.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(addr))})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	world.Must(world.Must(s.node.Host(name))(s.t).Serve(name, fmt.Sprintf("tcp:%s:%d", addr, port)))(s.t)
}

// What a Service is may change under its clients.
func TestAServiceMayStopAndBeginToHaveAnAddress(t *testing.T) {
	s := newStage(t)
	const addr = "10.96.0.10:80"
	for range 2 {
		s.serve(webService(), s.pods...)
		if r := s.client.Dial("tcp", addr); r.Err() != nil {
			t.Errorf("with its address: %v", r.Err())
		}
		for _, change := range []func(*service.Service){
			func(svc *service.Service) { svc.Headless, svc.ClusterIPs = true, nil },
			func(svc *service.Service) {
				svc.Type, svc.ExternalName, svc.ClusterIPs = service.ExternalName, "example.org", nil
			},
		} {
			svc := webService()
			change(svc)
			s.serve(svc, s.pods...)
			if r := s.client.Dial("tcp", addr, world.Timeout(short)); r.Errno != syscall.ENETUNREACH {
				t.Errorf("without an address: %v, want ENETUNREACH", r)
			}
		}
	}
}

func TestSourceRangesGuardLoadBalancerAddressesByTheClientsOwn(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.Type = service.LoadBalancer
	svc.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.10")}
	s.t = t
	client := world.Must(s.node.AddPod("other"))(t)
	other := world.Must(client.Probe())(t)
	svc.SourceRanges = []netip.Prefix{netip.PrefixFrom(client.IPv4(), 32)}
	s.serve(svc, s.pods...)
	for name, c := range map[string]struct {
		probe *world.Probe
		addr  string
		want  syscall.Errno
	}{
		"the pod in the range":         {other, "203.0.113.10:80", 0},
		"a pod outside":                {s.client, "203.0.113.10:80", syscall.EACCES},
		"the node, outside":            {s.host, "203.0.113.10:80", syscall.EACCES},
		"the ClusterIP is not guarded": {s.client, "10.96.0.10:80", 0},
	} {
		if r := c.probe.Dial("tcp", c.addr, world.Timeout(short)); r.Errno != c.want {
			t.Errorf("%s: %s %v, want %v", name, r.Stage, r.Errno, c.want)
		}
	}
	svc2 := *svc
	svc2.SourceRanges = []netip.Prefix{netip.PrefixFrom(s.node.IPv4(), 32)}
	s.serve(&svc2, s.pods...)
	if r := s.host.Dial("tcp", "203.0.113.10:80", world.Timeout(short)); r.Err() != nil {
		t.Errorf("the node in the range: %v", r.Err())
	}
	if r := other.Dial("tcp", "203.0.113.10:80", world.Timeout(short)); r.Errno != syscall.EACCES {
		t.Errorf("the pod that was in the range: %v", r.Errno)
	}
}

func TestNoConnectFailsWhileEndpointsChange(t *testing.T) {
	s := newStage(t)
	svc := webService()
	s.serve(svc, s.pods...)
	hammer := world.Must(s.client.Hammer("tcp", "10.96.0.10:80", world.HammerConfig{Workers: 2}))(t)
	const changes = 1000
	for i := range changes {
		s.serve(svc, s.pods[i%3], s.pods[(i+1)%3])
	}
	report := world.Must(hammer.Stop())(t)
	if report.Failed > 0 || report.Total < 100 {
		t.Errorf("%d of %d connects failed during %d changes: %v", report.Failed, report.Total, changes, report.Failures)
	}
}

func TestAServiceOfAnotherProxyIsLetPass(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.ProxyName = "other"
	s.serve(svc, s.pods...)
	s.answerAt("10.96.0.10", 80, "other")
	if r := s.client.Dial("tcp", "10.96.0.10:80", world.Timeout(short)); r.Backend != "other" {
		t.Errorf("connect: %v, want the answer of whoever has the address", r)
	}
	s.apply(compile.Update{Services: map[service.Name]*service.Service{web: nil}})
	if r := s.client.Dial("tcp", "10.96.0.10:80", world.Timeout(short)); r.Errno != syscall.ENETUNREACH {
		t.Errorf("connect after it is gone: %v", r.Errno)
	}
}
