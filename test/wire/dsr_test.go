// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// direct is the Service whose endpoints elsewhere answer clients themselves.
func direct() *service.Service {
	svc := webService()
	svc.Forwarding = service.DSR
	return svc
}

func TestEndpointsElsewhereAnswerClientsDirectly(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m)
			s.serve(direct(), s.near[0], s.far[0], s.far[1])
			for name, addr := range s.frontends() {
				want := s.host.IPv4()
				if netip.MustParseAddrPort(addr).Addr().Is6() {
					want = s.host.IPv6()
				}
				for _, proto := range []string{"tcp", "udp"} {
					report := world.Must(s.client.DialMany(proto, addr, 30))(t)
					if report.Failed > 0 || len(report.Backends) != 3 {
						t.Errorf("%s %s: %d failed, answers %v, first failure %+v", name, proto, report.Failed, report.Backends, report.Failures)
					}
					r := s.client.Dial(proto, addr)
					if r.Err() != nil || r.Seen.Addr().Unmap() != want {
						t.Errorf("%s %s: %v; %s sees %s, want %s", name, proto, r.Err(), r.Backend, r.Seen, want)
					}
				}
			}
		})
	}
}

func TestHybridTunnelsTCPOnly(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		svc := webService()
		svc.Forwarding = service.Hybrid
		s.serve(svc, s.far[0])
		for proto, want := range map[string]netip.Addr{"tcp": s.host.IPv4(), "udp": s.here.IPv4()} {
			r := s.client.Dial(proto, "203.0.113.10:80")
			if r.Err() != nil || r.Seen.Addr().Unmap() != want {
				t.Errorf("%s: %v, seen as %s, want %s", proto, r, r.Seen, want)
			}
		}
	})
}

func TestLargeTransfersAndDatagramsGoThroughTunnels(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		pod := s.echo(s.there, "echo")
		s.serve(direct(), pod)
		for name, addr := range s.frontends() {
			if err := s.bounce("tcp", addr, random(4<<20)); err != nil {
				t.Errorf("%s, 4 MiB: %v", name, err)
			}
			for _, size := range []int{1000, 3000, 9000} {
				if err := s.bounce("udp", addr, random(size)); err != nil {
					t.Errorf("%s, datagram of %d bytes: %v", name, size, err)
				}
			}
		}
	})
}

// What does not fit a tunnel is not sent in pieces: the client is told, by the
// node for its own link, by whoever has the narrower one behind it.
func TestClientsLearnOfThePathThroughATunnel(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(direct(), s.far[0])
		for name, addr := range s.frontends() {
			to := netip.MustParseAddrPort(addr)
			want := 1500 - 20
			if to.Addr().Is6() {
				want = 1500 - 40
			}
			if mtu, err := s.pathMTU(to, 1500); err != nil || mtu != want {
				t.Errorf("%s: the client knows MTU %d (%v), want %d", name, mtu, err, want)
			}
		}
	})
}

// The error about an answer that is too large for the client's path comes to
// the node that has the VIP, not to the one that sent the answer.
func TestEndpointsElsewhereLearnOfNarrowerPathsToClients(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		pod := s.echo(s.there, "echo")
		s.serve(direct(), pod)
		for name, addr := range s.frontends() {
			if err := s.narrowBack(addr, pod); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// narrowBack has the client's side say that an answer to it was too large, and
// waits until the endpoint knows.
func (s *stage) narrowBack(addr string, pod *world.Pod) error {
	to := netip.MustParseAddrPort(addr)
	client := s.host.IPv4()
	if to.Addr().Is6() {
		client = s.host.IPv6()
	}
	conn, err := s.dial("udp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	port := conn.LocalAddr().(*net.UDPAddr).Port
	return errors.Join(
		s.host.Do(func() error { return tooBig(to, netip.AddrPortFrom(client, uint16(port)), 1300) }),
		world.Wait(short, func() error {
			return pod.Do(func() error {
				routes, err := netlink.RouteGet(client.AsSlice())
				if err == nil && routes[0].MTU != 1300 {
					err = fmt.Errorf("the endpoint's way to %s has MTU %d, want 1300", client, routes[0].MTU)
				}
				return err
			})
		}))
}

// tooBig sends a router's complaint about a UDP answer from a VIP to a client.
func tooBig(vip, client netip.AddrPort, mtu uint16) error {
	answer := binary.BigEndian.AppendUint16(nil, vip.Port())
	answer = binary.BigEndian.AppendUint16(answer, client.Port())
	answer = append(answer, 5, 120, 0, 0)
	network := "ip4:icmp"
	var message []byte
	if vip.Addr().Is4() {
		message = []byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
		message = append(message, 0x45, 0, 5, 140, 0, 0, 0x40, 0, 64, 17, 0, 0)
	} else {
		network = "ip6:ipv6-icmp"
		message = []byte{2, 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
		message = append(message, 0x60, 0, 0, 0, 5, 120, 17, 64)
	}
	message = append(message, vip.Addr().AsSlice()...)
	message = append(message, client.Addr().AsSlice()...)
	if vip.Addr().Is4() {
		setChecksum(message[8:28], 10)
		message = append(message, answer...)
		setChecksum(message, 2)
	} else {
		message = append(message, answer...) // the kernel computes ICMPv6's
	}
	conn, err := net.Dial(network, vip.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(message)
	return err
}

// setChecksum writes the internet checksum (RFC 1071) of even bytes.
func setChecksum(b []byte, at int) {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[at:], ^uint16(sum>>16+sum))
}

func TestFlowsGoOnWhenAnotherNodeTakesOver(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		svc := direct()
		svc.Algorithm = service.Maglev
		s.serve(svc, s.near[0], s.near[1], s.far[0], s.far[1])
		var held []*world.Conn
		for _, addr := range []string{"203.0.113.10:80", "[2001:db8:1b::10]:80"} {
			for range 20 {
				c, r := s.client.Open("tcp", addr)
				if r.Err() != nil {
					t.Fatalf("%s: %v", addr, r)
				}
				held = append(held, c)
			}
		}
		s.routeBy(s.there, "203.0.113.0/24", "2001:db8:1b::/64")
		for i, c := range held {
			if r := c.Exchange(); r.Err() != nil {
				t.Errorf("connection %d, after the other node took over: %v", i, r)
			}
		}
	})
}

func TestMaglevPicksTheSameEndpointOnEveryNode(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		svc := webService()
		svc.Algorithm = service.Maglev
		s.serve(svc, s.near[0], s.near[1], s.far[0], s.far[1])
		backends := func() map[string]string {
			out := map[string]string{}
			for port := range 30 {
				for _, source := range []netip.Addr{s.host.IPv4(), s.host.IPv6()} {
					from, to := netip.AddrPortFrom(source, uint16(20000+port)).String(), "203.0.113.10:80"
					if source.Is6() {
						to = "[2001:db8:1b::10]:80"
					}
					r := s.client.Dial("udp", to, world.From(from))
					if r.Err() != nil {
						t.Fatalf("%s to %s: %v", from, to, r)
					}
					out[from] = r.Backend
				}
			}
			return out
		}
		first := backends()
		s.routeBy(s.there, "203.0.113.0/24", "2001:db8:1b::/64")
		second := backends()
		if fmt.Sprint(first) != fmt.Sprint(second) {
			t.Errorf("the nodes choose differently: %v and %v", first, second)
		}
	})
}
