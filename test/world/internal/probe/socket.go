// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// callError is a failed socket call: which one, and its errno.
type callError struct {
	stage string
	errno syscall.Errno
}

func (e *callError) Error() string { return fmt.Sprintf("%s: %v", e.stage, e.errno) }

// failed wraps err, an errno as package unix returns it, as a callError.
func failed(stage string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s: %w", stage, err)
	}
	return &callError{stage, errno}
}

// socket is a raw non-blocking socket. The standard library's connections are
// of no use here: they hide errnos, getpeername and the source of a datagram.
type socket struct {
	fd      int
	proto   string
	remote  unix.Sockaddr // nil when nothing was dialled
	options Options
}

// newSocket opens a socket of proto for addr's family and binds it to
// options.Source when that is given.
func newSocket(proto string, addr netip.Addr, options Options) (*socket, error) {
	family := unix.AF_INET
	if addr.Is6() || options.Mapped {
		family = unix.AF_INET6
	}
	typ, number, err := protocol(proto)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, number)
	if err != nil {
		return nil, failed("socket", err)
	}
	s := &socket{fd: fd, proto: proto, options: options}
	if err := s.prepare(family); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) prepare(family int) error {
	if family == unix.AF_INET6 && s.options.Mapped {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return failed("socket", err)
		}
	}
	if s.proto == "tcp" || s.proto == "http" {
		// Close with a reset: a probe that dials thousands of times must not
		// run out of source ports because of its own TIME_WAIT sockets, and
		// a fixed source port must be free again at once.
		linger := unix.Linger{Onoff: 1}
		if err := unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger); err != nil {
			return failed("socket", err)
		}
	}
	if s.options.Source == "" {
		return nil
	}
	source, err := netip.ParseAddrPort(s.options.Source)
	if err != nil {
		return fmt.Errorf("parse source address: %w", err)
	}
	// One port may have connections to several servers.
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return failed("bind", err)
	}
	return s.bind(source)
}

func (s *socket) bind(local netip.AddrPort) error {
	if err := unix.Bind(s.fd, sockaddr(local, s.options.Mapped)); err != nil {
		return failed("bind", err)
	}
	return nil
}

// connect connects to remote; an unconnected socket only remembers it.
func (s *socket) connect(remote netip.AddrPort) error {
	s.remote = sockaddr(remote, s.options.Mapped)
	if s.options.Unconnected {
		return nil
	}
	err := unix.Connect(s.fd, s.remote)
	if errors.Is(err, unix.EINPROGRESS) {
		if err := s.wait("connect", unix.POLLOUT, s.deadline()); err != nil {
			return err
		}
		pending, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return failed("connect", err)
		}
		if pending != 0 {
			return &callError{"connect", syscall.Errno(pending)}
		}
		return nil
	}
	if err != nil {
		return failed("connect", err)
	}
	return nil
}

func (s *socket) deadline() time.Time { return time.Now().Add(s.options.Timeout) }

// wait blocks until the socket is ready for events or the deadline is over.
func (s *socket) wait(stage string, events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return &callError{stage, syscall.ETIMEDOUT}
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return failed(stage, err)
		}
		if n > 0 {
			return nil
		}
	}
}

// send writes data whole.
func (s *socket) send(data []byte) error {
	deadline := s.deadline()
	for {
		var err error
		if s.options.Unconnected {
			err = unix.Sendto(s.fd, data, unix.MSG_NOSIGNAL, s.remote)
		} else {
			err = unix.Send(s.fd, data, unix.MSG_NOSIGNAL)
		}
		switch {
		case err == nil:
			return nil // a few bytes never split
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := s.wait("send", unix.POLLOUT, deadline); err != nil {
				return err
			}
		default:
			return failed("send", err)
		}
	}
}

// receive reads what there is, waiting until the deadline for the first byte.
// From is zero for a stream.
func (s *socket) receive(buf []byte, deadline time.Time) (n int, from netip.AddrPort, err error) {
	for {
		n, sa, err := unix.Recvfrom(s.fd, buf, 0)
		switch {
		case err == nil:
			return n, addrPort(sa), nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := s.wait("receive", unix.POLLIN, deadline); err != nil {
				return 0, netip.AddrPort{}, err
			}
		default:
			return 0, netip.AddrPort{}, failed("receive", err)
		}
	}
}

// names fills in what getsockname and getpeername say.
func (s *socket) names(r *Result) {
	if sa, err := unix.Getsockname(s.fd); err == nil {
		r.Local = addrPort(sa)
	}
	if sa, err := unix.Getpeername(s.fd); err == nil {
		r.Peer = addrPort(sa)
	}
}

func (s *socket) close() error {
	if err := unix.Close(s.fd); err != nil {
		return failed("close", err)
	}
	return nil
}

// protocol returns the socket type and protocol number for a name.
func protocol(proto string) (typ, number int, err error) {
	switch proto {
	case "tcp", "http":
		return unix.SOCK_STREAM, unix.IPPROTO_TCP, nil
	case "sctp":
		return unix.SOCK_STREAM, unix.IPPROTO_SCTP, nil
	case "udp":
		return unix.SOCK_DGRAM, unix.IPPROTO_UDP, nil
	}
	return 0, 0, fmt.Errorf("unknown protocol %q: use tcp, udp, sctp or http", proto)
}

func sockaddr(a netip.AddrPort, mapped bool) unix.Sockaddr {
	if a.Addr().Is4() && !mapped {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort converts sa; IPv4-mapped addresses stay as they are, so that a test
// can tell which family a socket reports.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
