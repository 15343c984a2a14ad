// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"net/netip"
	"testing"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// hammered runs a change while clients outside keep dialling a NodePort and
// others talk over open connections, and wants none of them disturbed.
func (s *stage) hammered(change func()) {
	s.t.Helper()
	addr := netip.AddrPortFrom(s.here.IPv4(), 30080).String()
	var held []*world.Conn
	for _, addr := range s.frontends() {
		for range 2 {
			c, r := s.client.Open("tcp", addr)
			if r.Err() != nil {
				s.t.Fatalf("%s: %v", addr, r)
			}
			held = append(held, c)
		}
	}
	hammer := world.Must(s.client.Hammer("tcp", addr, world.HammerConfig{Workers: 2}))(s.t)
	change()
	report := world.Must(hammer.Stop())(s.t)
	if report.Failed > 0 || report.Total == 0 {
		s.t.Errorf("%d of %d dials failed, the first by %+v", report.Failed, report.Total, report.Failures)
	}
	for _, c := range held {
		if r := c.Exchange(); r.Err() != nil {
			s.t.Errorf("an open connection: %v", r)
		}
	}
}

func TestNothingFailsWhileTheAgentIsReplaced(t *testing.T) {
	for _, m := range some(t, modes...) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m)
			s.serve(webService(), s.near[0], s.near[1], s.far[0], s.far[1])
			s.hammered(func() {
				for range 3 {
					for _, n := range []*dataplane{s.here, s.there} {
						n.loader.Close() // as when its process dies
						s.run(n, m)
					}
				}
			})
		})
	}
}

func TestNothingFailsWhileTablesGrow(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0], s.far[0])
		before := s.here.reconciler.Tables().Sizes()
		count := 3000
		if testing.Short() { // each doubling loads all programs anew, slow under emulation
			count = 1200
		}
		s.hammered(func() {
			u := compile.Update{Services: map[service.Name]*service.Service{}}
			for i := range count {
				name := service.Name{Namespace: "many", Name: fmt.Sprintf("s%d", i)}
				u.Services[name] = &service.Service{
					Name: name, Type: service.ClusterIP,
					ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(1 + i/250), byte(1 + i%250)})},
					Ports:      []service.Port{{Protocol: service.TCP, Port: 80}},
				}
			}
			if err := s.here.Do(func() error { return s.here.reconciler.Apply(s.here.compiler.Apply(u)) }); err != nil {
				t.Fatal(err)
			}
		})
		if after := s.here.reconciler.Tables().Sizes(); after.Frontends4 == before.Frontends4 {
			t.Fatal("the tables did not grow")
		}
	})
}

// A client that used a NodePort may next use the same port for a connection to
// the endpoint itself: its answers are not the Service's.
func TestADirectConnectionMayFollowFromTheSamePort(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0])
		s.routeBy(s.here, s.near[0].IPv4().String()+"/32", s.near[0].IPv6().String()+"/128")
		for name, c := range map[string]struct{ vip, endpoint, client netip.Addr }{
			"IPv4": {netip.MustParseAddr("203.0.113.10"), s.near[0].IPv4(), s.host.IPv4()},
			"IPv6": {netip.MustParseAddr("2001:db8:1b::10"), s.near[0].IPv6(), s.host.IPv6()},
		} {
			for port := uint16(21000); port < 21010; port++ {
				from := world.From(netip.AddrPortFrom(c.client, port).String())
				if r := s.client.Dial("tcp", netip.AddrPortFrom(c.vip, 80).String(), from); r.Err() != nil {
					t.Errorf("%s, the Service from port %d: %v", name, port, r)
				}
				if r := s.client.Dial("tcp", netip.AddrPortFrom(c.endpoint, 8080).String(), from); r.Err() != nil {
					t.Errorf("%s, then the endpoint from port %d: %v", name, port, r)
				}
			}
		}
	})
}

// The same when the old flow was swept long ago: what is left of it among the
// newcomers must not count any more.
func TestADirectConnectionMayFollowAfterTheSweep(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0])
		s.routeBy(s.here, s.near[0].IPv4().String()+"/32")
		from := world.From(netip.AddrPortFrom(s.host.IPv4(), 21000).String())
		for _, proto := range []string{"tcp", "udp"} {
			if r := s.client.Dial(proto, "203.0.113.10:80", from); r.Err() != nil {
				t.Errorf("%s: %v", proto, r)
			}
		}
		flows := s.here.reconciler.Tables().Flows4
		for key := range world.Must(flows.Entries())(t) {
			if err := flows.Delete(key); err != nil {
				t.Fatal(err)
			}
		}
		err := world.Wait(4*short, func() error {
			return s.client.Dial("tcp", netip.AddrPortFrom(s.near[0].IPv4(), 8080).String(), from, world.Timeout(impatient)).Err()
		})
		if err != nil {
			t.Errorf("a connection to the endpoint from the same port: %v", err)
		}
	})
}

func TestEndpointsComeAndGoUnderTraffic(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0], s.far[0])
		s.hammered(func() {
			for range 20 {
				s.serve(webService(), s.near[1], s.far[1])
				s.serve(webService(), s.near[0], s.far[0], s.near[1])
			}
		})
	})
}
