// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListenersAreFoundWithWhatTheyTake(t *testing.T) {
	t.Parallel()
	only := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) }); failed != nil {
			return failed
		}
		return err
	}}
	both := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) }); failed != nil {
			return failed
		}
		return err
	}}
	plain := net.ListenConfig{}
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for _, c := range []struct {
		name, network, addr string
		config              net.ListenConfig
		takes, leaves       []netip.Addr
	}{
		{"TCP, one address", "tcp4", "127.0.0.1:0", plain, []netip.Addr{v4}, []netip.Addr{v6, netip.MustParseAddr("127.0.0.2")}},
		{"TCP, all of IPv4", "tcp4", "0.0.0.0:0", plain, []netip.Addr{v4}, []netip.Addr{v6}},
		{"TCP, both families", "tcp", "[::]:0", both, []netip.Addr{v4, v6}, nil},
		{"TCP, IPv6 only", "tcp6", "[::]:0", only, []netip.Addr{v6}, []netip.Addr{v4}},
		{"UDP, one address", "udp6", "[::1]:0", plain, []netip.Addr{v6}, []netip.Addr{v4}},
		{"UDP, both families", "udp", "[::]:0", both, []netip.Addr{v4, v6}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var port uint16
			protocol := uint8(unix.IPPROTO_TCP)
			if c.network[0] == 't' {
				l, err := c.config.Listen(context.Background(), c.network, c.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				port = l.Addr().(*net.TCPAddr).AddrPort().Port()
			} else {
				protocol = unix.IPPROTO_UDP
				l, err := c.config.ListenPacket(context.Background(), c.network, c.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				port = l.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			}
			list, err := Listeners(protocol)
			if err != nil {
				t.Fatal(err)
			}
			taken := func(a netip.Addr) bool {
				return slices.ContainsFunc(list, func(l Listener) bool { return l.Takes(netip.AddrPortFrom(a, port)) })
			}
			for _, a := range c.takes {
				if !taken(a) {
					t.Errorf("nobody takes port %d of %s", port, a)
				}
			}
			for _, a := range c.leaves {
				if taken(a) {
					t.Errorf("somebody takes port %d of %s", port, a)
				}
			}
		})
	}
}

func TestWhatIsConnectedIsNoListener(t *testing.T) {
	t.Parallel()
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.Dial("udp4", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	list, err := Listeners(unix.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	connected := client.LocalAddr().(*net.UDPAddr).AddrPort()
	if slices.ContainsFunc(list, func(l Listener) bool { return l.Takes(connected) }) {
		t.Errorf("the connected socket %s is among %v", connected, list)
	}
	if _, ok := parseListener(make([]byte, diagMessageLen-1)); ok {
		t.Error("a message that is cut short is a listener")
	}
}
