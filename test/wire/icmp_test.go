// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/test/world"
)

func TestAPublishedAddressAnswersPing(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0])
		for _, addr := range []string{"203.0.113.10", "2001:db8:1b::20"} {
			err := s.host.Do(func() error { return ping(netip.MustParseAddr(addr)) })
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// ping sends an echo request and waits for its reply.
func ping(to netip.Addr) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	conn, err := net.Dial(network, to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(world.Scaled(short)))
	message := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1, 'p', 'o', 'r', 't'}
	if to.Is4() { // the kernel computes ICMPv6's
		var sum uint32
		for i := 0; i < len(message); i += 2 {
			sum += uint32(message[i])<<8 | uint32(message[i+1])
		}
		sum = sum>>16 + sum&0xffff
		message[2], message[3] = byte(^sum>>8), byte(^sum)
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.(*net.IPConn).ReadFromIP(buf) // without the IP header
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		if n >= len(message) && buf[0] == reply && string(buf[4:n]) == string(message[4:]) {
			return nil
		}
	}
}

// narrow makes a node's way to a pod take packets of at most mtu bytes. To an
// endpoint elsewhere programs ask the kernel for the way (bpf_fib_lookup), which
// tells them a route's MTU only when it is locked.
func narrow(t *testing.T, n *dataplane, pod *world.Pod, mtu int) {
	t.Helper()
	err := n.Do(func() error {
		for _, addr := range []netip.Addr{pod.IPv4(), pod.IPv6()} {
			routes, err := netlink.RouteGet(addr.AsSlice())
			if err != nil {
				return err
			}
			route := netlink.Route{
				LinkIndex: routes[0].LinkIndex, Gw: routes[0].Gw, MTU: mtu, MTULock: pod.Node() != n.Node,
				Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
			}
			if err := netlink.RouteReplace(&route); err != nil {
				return fmt.Errorf("narrow the way to %s: %w", addr, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A datagram with DF meets a narrower link behind the node: the error has to
// reach the client's socket, which then knows the path's MTU.
func TestClientsLearnOfNarrowerPathsBehindTheNode(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		for _, c := range []struct {
			pod       *world.Pod
			size, mtu int
		}{
			{s.near[0], 1400, 1300},
			{s.far[0], 1300, 1280}, // fits what the client knows by then
		} {
			narrow(t, s.here, c.pod, c.mtu)
			s.serve(webService(), c.pod)
			s.here.reconciler.RoutesChanged()
			for name, addr := range s.frontends() {
				mtu, err := s.pathMTU(netip.MustParseAddrPort(addr), c.size)
				if err != nil || mtu != c.mtu {
					t.Errorf("%s by %s: the client knows MTU %d (%v), want %d", name, c.pod.IPv4(), mtu, err, c.mtu)
				}
			}
		}
	})
}

// pathMTU sends datagrams of so many bytes that must not be fragmented until
// the socket knows of a smaller path, and returns what it knows.
func (s *stage) pathMTU(to netip.AddrPort, size int) (mtu int, err error) {
	err = s.host.Do(func() error {
		level, discover, probe, get, family, headers := syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER, syscall.IP_PMTUDISC_DO, syscall.IP_MTU, "udp4", 28
		if to.Addr().Is6() {
			level, discover, get, family, headers = syscall.IPPROTO_IPV6, syscall.IPV6_MTU_DISCOVER, syscall.IPV6_MTU, "udp6", 48
		}
		conn, err := net.Dial(family, to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var opt error
		control := func(f func(fd int) error) error {
			if err := raw.Control(func(fd uintptr) { opt = f(int(fd)) }); err != nil {
				return err
			}
			return opt
		}
		if err := control(func(fd int) error { return syscall.SetsockoptInt(fd, level, discover, probe) }); err != nil {
			return err
		}
		return world.Wait(short, func() error {
			_, sendErr := conn.Write(make([]byte, size-headers))
			if err := control(func(fd int) (err error) { mtu, err = syscall.GetsockoptInt(fd, level, get); return err }); err != nil {
				return err
			}
			if mtu >= size {
				return fmt.Errorf("still MTU %d (send: %v)", mtu, sendErr)
			}
			return nil
		})
	})
	return mtu, err
}
