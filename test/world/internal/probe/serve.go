// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// serve listens on every spec and answers with name until the process ends.
// A spec is "proto:port" or "proto:address:port", proto one of tcp, udp, sctp
// and http. It returns once all sockets listen.
func serve(name string, specs []string) error {
	for _, spec := range specs {
		if err := serveOne(name, spec); err != nil {
			return fmt.Errorf("listen on %s: %w", spec, err)
		}
	}
	return nil
}

func serveOne(name, spec string) error {
	proto, addrs, err := parseSpec(spec)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if proto == "udp" {
			if err := serveUDP(name, addr); err != nil {
				return err
			}
			continue
		}
		l, err := listen(proto, addr)
		if err != nil {
			return err
		}
		if proto == "http" {
			go serveHTTP(name, l)
		} else {
			go serveStream(name, l)
		}
	}
	return nil
}

// parseSpec splits a spec; without an address it means both families' wildcard.
func parseSpec(spec string) (proto string, addrs []netip.AddrPort, err error) {
	proto, where, ok := strings.Cut(spec, ":")
	if !ok {
		return "", nil, errors.New("no port; write proto:port or proto:address:port")
	}
	if port, err := strconv.ParseUint(where, 10, 16); err == nil {
		return proto, []netip.AddrPort{
			netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)),
			netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)),
		}, nil
	}
	addr, err := netip.ParseAddrPort(where)
	return proto, []netip.AddrPort{addr}, err
}

// listen opens a listening stream socket of exactly addr's family.
func listen(proto string, addr netip.AddrPort) (net.Listener, error) {
	typ, number, err := protocol(proto)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, number)
	if err != nil {
		return nil, failed("socket", err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close() // FileListener keeps its own copy
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, failed("socket", err)
	}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, failed("socket", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(addr, false)); err != nil {
		return nil, failed("bind", err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return nil, failed("listen", err)
	}
	return net.FileListener(file)
}

// serveStream answers every line a client sends, for as long as it stays.
func serveStream(name string, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			continue // a client that gave up while queued; the listener lives as long as the process
		}
		go func() {
			defer conn.Close()
			name := name
			if at, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil && name == AddressCalled {
				name = at.Addr().String()
			}
			for in := bufio.NewScanner(conn); in.Scan(); {
				if _, err := fmt.Fprintf(conn, "%s %s\n", name, conn.RemoteAddr()); err != nil {
					return
				}
			}
		}()
	}
}

func serveHTTP(name string, l net.Listener) {
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(clientHeader, r.RemoteAddr)
		fmt.Fprintln(w, name)
	})}
	if err := server.Serve(l); err != nil {
		fmt.Fprintln(os.Stderr, "serve http:", err)
	}
}

// serveUDP answers every datagram from the address it was sent to: a node has
// several, and a connected client drops answers that come from another one.
func serveUDP(name string, addr netip.AddrPort) error {
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		if network == "udp4" {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	}); err != nil {
		return err
	}
	if optErr != nil {
		return failed("socket", optErr)
	}
	go answerUDP(name, conn)
	return nil
}

func answerUDP(name string, conn *net.UDPConn) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		_, noob, _, client, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			continue // an ICMP error from an earlier answer
		}
		answer := fmt.Appendf(nil, "%s %s\n", name, client)
		// A client that is gone is no concern of the server's.
		_, _, _ = conn.WriteMsgUDPAddrPort(answer, replyFrom(oob[:noob]), client)
	}
}

// replyFrom turns the packet info of a received datagram into the control
// message that sends the answer from the same address.
func replyFrom(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		h, data := messages[i].Header, messages[i].Data
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: ifindex, spec_dst, addr. The kernel has
			// filled spec_dst with the local address to answer from.
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(data[4:8])})
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(data[:16])})
		}
	}
	return nil
}
