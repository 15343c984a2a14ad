// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

// both runs a test through tc alone and with XDP before it.
func both(t *testing.T, test func(t *testing.T, s *stage)) {
	for _, m := range some(t, modes[0], modes[3]) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			test(t, newStage(t, m))
		})
	}
}

// impatient is for what is dropped: nobody will ever answer.
const impatient = 300 * time.Millisecond

func TestEndpointsHereSeeTheClientAndOthersThisNode(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		client := map[bool]netip.Addr{true: s.host.IPv4(), false: s.host.IPv6()}
		nodeAddr := map[bool]netip.Addr{true: s.here.IPv4(), false: s.here.IPv6()}
		for _, pod := range []*world.Pod{s.near[0], s.far[0]} {
			s.serve(webService(), pod)
			for name, addr := range s.frontends() {
				for _, proto := range []string{"tcp", "udp"} {
					r := s.client.Dial(proto, addr)
					want := client
					if pod == s.far[0] {
						want = nodeAddr
					}
					is4 := netip.MustParseAddrPort(addr).Addr().Is4()
					if r.Err() != nil || r.Seen.Addr().Unmap() != want[is4] {
						t.Errorf("%s %s: %v; %s sees %s, want %s", name, proto, r.Err(), r.Backend, r.Seen, want[is4])
					}
					if pod == s.far[0] && r.Seen.Port() < 49152 {
						t.Errorf("%s %s: masqueraded to port %d, outside of the range", name, proto, r.Seen.Port())
					}
				}
			}
		}
	})
}

func TestPolicyLocalKeepsToThisNodeAndDropsWithoutAnEndpointHere(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		svc := webService()
		svc.ExternalLocal = true
		s.serve(svc, s.near[0], s.far[0], s.far[1])
		for name, addr := range s.frontends() {
			report := world.Must(s.client.DialMany("tcp", addr, 20))(t)
			if report.Failed > 0 || report.Backends["near1"] != 20 {
				t.Errorf("%s: %d failed, answers %v, want near1 only", name, report.Failed, report.Backends)
			}
		}
		s.serve(svc, s.far[0])
		for name, addr := range s.frontends() {
			if r := s.client.Dial("tcp", addr, world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
				t.Errorf("%s without an endpoint here: %v, want silence", name, r)
			}
		}
		if s.count("no-local-endpoint") == 0 {
			t.Error("drops for policy Local are not counted")
		}
	})
}

// count reads a reason's counter on the node that the client sends to.
func (s *stage) count(reason string) uint64 {
	s.t.Helper()
	denied, err := s.here.reconciler.Tables().Denied()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range denied {
		if d.Reason == reason {
			return d.Count
		}
	}
	s.t.Fatalf("no counter %s", reason)
	return 0
}

func TestAServiceWithoutEndpointsRefusesAtOnce(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService())
		for name, addr := range s.frontends() {
			for _, proto := range []string{"tcp", "udp"} {
				if r := s.client.Dial(proto, addr); r.Errno != syscall.ECONNREFUSED {
					t.Errorf("%s %s: %v, want it refused", name, proto, r)
				}
			}
		}
	})
}

func TestAnUnknownPortOfAPublishedAddressIsRefused(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0])
		for _, addr := range []string{"203.0.113.10:81", "[2001:db8:1b::10]:81", "203.0.113.20:81", "[2001:db8:1b::20]:81"} {
			for _, proto := range []string{"tcp", "udp"} {
				if r := s.client.Dial(proto, addr); r.Errno != syscall.ECONNREFUSED {
					t.Errorf("%s %s: %v, want it refused", proto, addr, r)
				}
			}
		}
	})
}

func TestClusterIPsAreNotForClientsOutside(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0])
		for _, addr := range []string{"10.96.0.10:80", "[fd00:10:96::10]:80"} {
			if r := s.client.Dial("tcp", addr, world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
				t.Errorf("%s: %v, want silence", addr, r)
			}
		}
		if s.count("cluster-ip-outside") == 0 {
			t.Error("drops are not counted")
		}
	})
}

func TestSourceRangesGuardLoadBalancerAddresses(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		svc := webService()
		svc.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:9::/48")}
		s.serve(svc, s.near[0], s.far[0])
		for _, addr := range []string{"203.0.113.10:80", "[2001:db8:1b::10]:80"} {
			if r := s.client.Dial("tcp", addr, world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
				t.Errorf("%s from outside the ranges: %v, want silence", addr, r)
			}
		}
		if s.count("source-range") == 0 {
			t.Error("drops are not counted")
		}
		svc.SourceRanges = []netip.Prefix{netip.PrefixFrom(s.host.IPv4(), 32), netip.PrefixFrom(s.host.IPv6(), 128)}
		s.serve(svc, s.near[0], s.far[0])
		for _, addr := range []string{"203.0.113.10:80", "[2001:db8:1b::10]:80"} {
			if r := s.client.Dial("tcp", addr); r.Err() != nil {
				t.Errorf("%s from within the ranges: %v", addr, r)
			}
		}
	})
}

func TestAffinityIsByClientForAllAddressesOfAPort(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		svc := webService()
		svc.Affinity = time.Hour
		s.serve(svc, s.near[0], s.near[1], s.far[0], s.far[1])
		first := map[string]string{}
		for name, addr := range s.frontends() {
			for range 5 {
				r := s.client.Dial("tcp", addr)
				family := fmt.Sprint(netip.MustParseAddrPort(addr).Addr().Is4())
				if first[family] == "" {
					first[family] = r.Backend
				}
				if r.Err() != nil || r.Backend != first[family] {
					t.Errorf("%s: %v by %q, want %q", name, r.Err(), r.Backend, first[family])
				}
			}
		}
	})
}

func TestTwoAddressesWithOneEndpointDoNotMixUpOneClientPort(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		for _, pod := range []*world.Pod{s.near[0], s.far[0]} {
			s.serve(webService(), pod)
			for i, pair := range [][2]string{{"203.0.113.10:80", "203.0.113.20:80"}, {"[2001:db8:1b::10]:80", "[2001:db8:1b::20]:80"}} {
				from := netip.AddrPortFrom(s.host.IPv4(), uint16(23000+i))
				if i == 1 {
					from = netip.AddrPortFrom(s.host.IPv6(), uint16(23000+i))
				}
				if pod == s.far[0] {
					from = netip.AddrPortFrom(from.Addr(), from.Port()+100)
				}
				for _, proto := range []string{"tcp", "udp"} {
					s.twoAtOnce(proto, pair, from)
				}
			}
		}
	})
}

// twoAtOnce talks to two addresses in turn from one port.
func (s *stage) twoAtOnce(proto string, to [2]string, from netip.AddrPort) {
	s.t.Helper()
	a, r := s.client.Open(proto, to[0], world.From(from.String()))
	if r.Err() != nil {
		s.t.Fatalf("%s %s: %v", proto, to[0], r)
	}
	defer a.Close()
	b, r := s.client.Open(proto, to[1], world.From(from.String()))
	if r.Err() != nil {
		s.t.Fatalf("%s %s while %s is in use from the same port: %v", proto, to[1], to[0], r)
	}
	defer b.Close()
	for range 3 {
		if ra, rb := a.Exchange(), b.Exchange(); ra.Err() != nil || rb.Err() != nil {
			s.t.Errorf("%s: %s: %v; %s: %v", proto, to[0], ra.Err(), to[1], rb.Err())
		}
	}
}

func TestOpenConnectionsOutliveTheirEndpointsPlaceInTheSet(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0], s.far[0])
		held := map[string]*world.Conn{}
		for name, addr := range s.frontends() {
			for i := range 4 {
				c, r := s.client.Open("tcp", addr)
				if r.Err() != nil {
					t.Fatalf("%s: %v", name, r)
				}
				held[fmt.Sprint(name, " ", i)] = c
			}
		}
		s.serve(webService(), s.near[1])
		for name, c := range held {
			if r := c.Exchange(); r.Err() != nil {
				t.Errorf("%s after its endpoint left the set: %v", name, r)
			}
		}
		report := world.Must(s.client.DialMany("tcp", "203.0.113.10:80", 20))(t)
		if report.Failed > 0 || report.Backends["near2"] != 20 {
			t.Errorf("new connections: %d failed, answers %v, want near2", report.Failed, report.Backends)
		}
	})
}

func TestDatagramsMoveToALiveEndpointFromAFixedPort(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.far[0])
		c, r := s.client.Open("udp", "203.0.113.10:80")
		if r.Err() != nil {
			t.Fatal(r)
		}
		for range 3 {
			if r := c.Exchange(); r.Err() != nil || r.Backend != "far1" {
				t.Fatalf("%v by %q, want far1", r.Err(), r.Backend)
			}
		}
		s.serve(webService(), s.near[1])
		if r := c.Exchange(); r.Err() != nil || r.Backend != "near2" {
			t.Errorf("after the endpoint is gone: %v by %q, want near2", r.Err(), r.Backend)
		}
	})
}
