// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

// direct is the Service whose endpoints elsewhere answer clients themselves.
func direct() *service.Service {
	svc := webService()
	svc.Forwarding = service.DSR
	return svc
}

func TestEndpointsElsewhereAnswerClientsDirectly(t *testing.T) {
	for _, m := range some(t, modes...) {
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
					report := world.Must(s.client.DialMany(proto, addr, 60))(t)
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
		mtu := uint16(1400)
		for name, addr := range s.frontends() {
			mtu -= 10 // the endpoint knows of the client what the last one taught it
			if err := s.narrowBack(addr, pod, mtu); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A router between the nodes says that a tunnelled packet is too large for its
// link: the client has to learn of it.
func TestClientsLearnOfNarrowerPathsBetweenNodes(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(direct(), s.far[0])
		for name, addr := range s.frontends() {
			to := netip.MustParseAddrPort(addr)
			client, node, endpoint, overhead := s.host.IPv4(), s.here.IPv4(), s.far[0].IPv4(), 20
			if to.Addr().Is6() {
				client, node, endpoint, overhead = s.host.IPv6(), s.here.IPv6(), s.far[0].IPv6(), 40
			}
			conn, err := s.dial("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for range 2 { // the second one makes an established flow of it
				if _, err := conn.Write([]byte("hello\n")); err != nil {
					t.Fatal(err)
				}
			}
			from := netip.AddrPortFrom(client, uint16(conn.LocalAddr().(*net.UDPAddr).Port))
			complaint := packet(node, endpoint, packet(from.Addr(), to.Addr(), ports(from, to)))
			err = world.Wait(short, func() error { // until the node knows the flow
				return errors.Join(
					s.there.Do(func() error { return tooBig(node, 1400, complaint) }),
					s.host.Do(func() error { return knows(to.Addr(), 1400-overhead) }))
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// narrowBack has the client's side say that an answer to it was too large, and
// waits until the endpoint knows.
func (s *stage) narrowBack(addr string, pod *world.Pod, mtu uint16) error {
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
	from := netip.AddrPortFrom(client, uint16(conn.LocalAddr().(*net.UDPAddr).Port))
	complaint := packet(to.Addr(), client, ports(to, from))
	return world.Wait(short, func() error { // until the nodes know the flow
		return errors.Join(
			s.host.Do(func() error { return tooBig(to.Addr(), mtu, complaint) }),
			pod.Do(func() error { return knows(client, int(mtu)) }))
	})
}

// knows tells whether this namespace knows of a path's MTU.
func knows(to netip.Addr, mtu int) error {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err == nil && routes[0].MTU != mtu {
		err = fmt.Errorf("the way to %s has MTU %d, want %d", to, routes[0].MTU, mtu)
	}
	return err
}

// ports begins a UDP header.
func ports(from, to netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	return append(binary.BigEndian.AppendUint16(b, to.Port()), 5, 120, 0, 0)
}

// packet is the beginning of a large packet that holds UDP, or another packet
// of its family.
func packet(from, to netip.Addr, holds []byte) []byte {
	var b []byte
	if from.Is4() {
		b = []byte{0x45, 0, 5, 140, 0, 0, 0x40, 0, 64, 17, 0, 0}
		if holds[0] == 0x45 && len(holds) > 8 {
			b[9] = 4
		}
	} else {
		b = []byte{0x60, 0, 0, 0, 5, 120, 17, 64}
		if holds[0] == 0x60 && len(holds) > 8 {
			b[6] = 41
		}
	}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	if from.Is4() {
		setChecksum(b, 10)
	}
	return append(b, holds...)
}

// tooBig sends a router's complaint about a packet.
func tooBig(to netip.Addr, mtu uint16, about []byte) error {
	network, message := "ip6:ipv6-icmp", []byte{2, 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
	if to.Is4() {
		network, message[0], message[1] = "ip4:icmp", 3, 4
	}
	message = append(message, about...)
	if to.Is4() {
		setChecksum(message, 2) // the kernel computes ICMPv6's
	}
	conn, err := net.Dial(network, to.String())
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

// Datagrams that were merged on their way in keep their size in a tunnel.
func TestMergedDatagramsGoThroughTunnels(t *testing.T) {
	kernel.Need(t, kernel.MergedUDP)
	s := newStage(t, modes[0])
	s.serve(direct(), s.echo(s.there, "echo"))
	tun := s.openTUN(s.here, unix.IFF_VNET_HDR)
	if err := s.here.Do(func() error {
		dev, err := netlink.LinkByName(bareName)
		return errors.Join(err, s.here.serveBare(dev))
	}); err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort("203.0.113.10:80")
	conn, err := s.dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := netip.AddrPortFrom(s.host.IPv4(), uint16(conn.LocalAddr().(*net.UDPAddr).Port))
	data := random(3000)
	if _, err := tun.Write(mergedUDP(from, to, data, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(short)); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 1000 {
		answer := make([]byte, 2000)
		n, err := conn.Read(answer)
		if err != nil || !bytes.Equal(answer[:n], data[at:at+1000]) {
			t.Fatalf("answer to the datagram at %d: %d bytes, %v", at, n, err)
		}
	}
}

// mergedUDP is what a TUN file takes for several datagrams of so many bytes each
// (linux/virtio_net.h).
func mergedUDP(from, to netip.AddrPort, data []byte, each uint16) []byte {
	const needsChecksum, gsoUDP, ipSize, udpSize, checkAt = 1, 5, 20, 8, 6
	b := []byte{needsChecksum, gsoUDP}
	for _, v := range []uint16{ipSize + udpSize, each, ipSize, checkAt} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[2:], uint16(ipSize+udpSize+len(data)))
	setChecksum(ip, 10)
	udp := ports(from, to)
	binary.BigEndian.PutUint16(udp[4:], uint16(udpSize+len(data)))
	pseudo := append([]byte{0, 17, udp[4], udp[5], 0, 0}, ip[12:]...)
	setChecksum(pseudo, 4)
	// The sender's part: the sum of the addresses, not its complement.
	udp[6], udp[7] = ^pseudo[4], ^pseudo[5]
	return append(append(append(b, ip...), udp...), data...)
}
