// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Listener is a socket that takes what arrives at a port: one that listens, or
// one of datagrams that is connected to nobody.
type Listener struct {
	// Addr is what it is bound to; an IPv4-mapped address is given as IPv4.
	Addr netip.AddrPort
	// Both: it is bound to :: and takes the port of IPv4, too.
	Both bool
}

// Listeners asks the kernel for the listeners of a protocol (unix.IPPROTO_TCP,
// _UDP or _SCTP) in this thread's network namespace, of both families. The
// kernel has listening sockets in a table of their own, so that connections
// cost nothing; sockets of datagrams it looks through.
func Listeners(protocol uint8) ([]Listener, error) {
	var out []Listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		request.AddData(listenersOf{family, protocol})
		messages, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("list sockets of protocol %d by SOCK_DIAG: %w", protocol, err)
		}
		for _, m := range messages {
			if l, ok := parseListener(m); ok {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// listenersOf is struct inet_diag_req_v2 of linux/inet_diag.h, for sockets in
// the states of listeners.
type listenersOf struct{ family, protocol uint8 }

const (
	diagRequestLen = 56
	diagMessageLen = 72 // struct inet_diag_msg, before its attributes
	stateClose     = 7  // TCP_CLOSE: of datagrams, connected to nobody
	stateListen    = 10 // TCP_LISTEN
	diagV6Only     = 11 // INET_DIAG_SKV6ONLY
)

func (r listenersOf) Len() int { return diagRequestLen }

func (r listenersOf) Serialize() []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = r.family, r.protocol
	states := uint32(1 << stateListen)
	if r.protocol == unix.IPPROTO_UDP {
		states = 1 << stateClose
	}
	binary.NativeEndian.PutUint32(b[4:], states)
	return b
}

// parseListener reads a struct inet_diag_msg and its attributes.
func parseListener(m []byte) (Listener, bool) {
	if len(m) < diagMessageLen {
		return Listener{}, false
	}
	port := binary.BigEndian.Uint16(m[4:])
	if port == 0 {
		return Listener{}, false
	}
	if m[0] == unix.AF_INET {
		return Listener{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[8:12])), port)}, true
	}
	addr := netip.AddrFrom16([16]byte(m[8:24])).Unmap()
	l := Listener{Addr: netip.AddrPortFrom(addr, port), Both: addr == netip.IPv6Unspecified()}
	attributes, err := nl.ParseRouteAttr(m[diagMessageLen:])
	if err != nil {
		return Listener{}, false
	}
	for _, a := range attributes {
		if a.Attr.Type == diagV6Only && len(a.Value) > 0 && a.Value[0] != 0 {
			l.Both = false
		}
	}
	return l, true
}

// Takes tells whether the listener has the port of an address.
func (l Listener) Takes(addr netip.AddrPort) bool {
	if l.Addr.Port() != addr.Port() {
		return false
	}
	bound := l.Addr.Addr()
	if bound.IsUnspecified() {
		return l.Both || bound.Is4() == addr.Addr().Is4()
	}
	return bound == addr.Addr()
}
