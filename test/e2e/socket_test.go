// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

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
	denied, err := s.reconciler.Tables().Denied()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range denied[:4] {
		if d.Count == 0 {
			t.Errorf("reason %s was not counted", d.Reason)
		}
	}
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
	if got, _ := s.reconciler.Tables().Denied(); got[2].Count != 0 {
		t.Errorf("%d calls were denied, want none: loopback of a pod is not ours", got[2].Count)
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

// A client that was away for longer than the timeout is spread anew: sooner or
// later it gets another endpoint, which one that stays never does.
func TestAffinityEndsWithItsTimeout(t *testing.T) {
	s := newStage(t)
	svc := webService()
	svc.Affinity = time.Second
	s.serve(svc, s.pods...)
	const addr = "10.96.0.10:80"
	first := s.client.Dial("tcp", addr)
	if got := s.names(s.client, "tcp", addr, 20); got[first.Backend] != 20 {
		t.Fatalf("answers %v after the first from %s", got, first.Backend)
	}
	table := s.reconciler.Tables().Affinity
	for tries := 0; s.client.Dial("tcp", addr).Backend == first.Backend; tries++ {
		if tries == 12 { // one in half a million
			t.Fatalf("still %s after the timeout passed %d times", first.Backend, tries)
		}
		err := world.Wait(5*time.Second, func() error {
			var err error
			for key, v := range table.All(&err) {
				if idle := time.Duration(coarse(t) - v.LastSeen); idle <= svc.Affinity {
					return fmt.Errorf("client %v was seen %v ago", key.Client, idle)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
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
	for who, probe := range map[string]*world.Probe{"pod": s.client, "host": s.host} {
		if r := probe.Dial("tcp", "203.0.113.10:80"); r.Err() != nil {
			t.Errorf("%s, ipMode VIP: %v", who, r.Err())
		}
		if r := probe.Dial("tcp", "203.0.113.20:80", world.Timeout(impatient)); r.Backend != "" || r.Errno == syscall.ECONNREFUSED {
			t.Errorf("%s, ipMode Proxy: %v, backend %q, want that it went out", who, r.Errno, r.Backend)
		}
	}
	svc = webService()
	svc.Type = service.LoadBalancer
	svc.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.20")}
	s.serve(svc, s.pods...)
	if r := s.client.Dial("tcp", "203.0.113.20:80"); r.Err() != nil {
		t.Errorf("after it became ipMode VIP: %v", r.Err())
	}
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
	// Nobody else serves it here: the call is not refused, and gets no answer.
	if r := s.client.Dial("tcp", "10.96.0.10:80", world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
		t.Errorf("connect: %v, want no answer at all", r.Errno)
	}
	s.apply(compile.Update{Services: map[service.Name]*service.Service{web: nil}})
	if r := s.client.Dial("tcp", "10.96.0.10:80", world.Timeout(short)); r.Errno != syscall.ENETUNREACH {
		t.Errorf("connect after it is gone: %v", r.Errno)
	}
}
