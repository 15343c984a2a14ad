// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"portolan.dev/portolan/test/world"
)

// flow is UDP from one source port, by a client that opens its socket again
// when the kernel closes it, from the same port.
type flow struct {
	open func() (*world.Conn, world.Result)
	conn *world.Conn // nil: not open
}

// firstFlowPort is below the ports that the kernel chooses from.
const firstFlowPort = 20000

// flow returns the flow of a script from somebody to an address.
func (s *stage) flow(who, proto, addr string) *flow {
	name := who + " " + proto + " " + addr
	if s.flows[name] == nil {
		from := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(firstFlowPort+len(s.flows)))
		if netip.MustParseAddrPort(addr).Addr().Is6() {
			from = netip.AddrPortFrom(netip.IPv6Unspecified(), from.Port())
		}
		options := []world.Option{world.From(from.String()), world.Timeout(impatient)}
		if proto == "sendto" {
			options = append(options, world.Unconnected())
		}
		s.flows[name] = &flow{open: func() (*world.Conn, world.Result) { return s.probes[who].Open("udp", addr, options...) }}
	}
	return s.flows[name]
}

// exchange sends a datagram and waits for its answer.
func (f *flow) exchange() world.Result {
	if f.conn == nil {
		conn, r := f.open()
		if r.Err() != nil {
			return r
		}
		f.conn = conn
	}
	r := f.conn.Exchange()
	if r.Err() != nil && r.Errno != syscall.ETIMEDOUT && r.Errno != syscall.ECONNREFUSED {
		f.close()
	}
	return r
}

func (f *flow) close() {
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// answeredBy tells whether one of these, and the same one, answers five
// datagrams in a row; of no names, whether nobody does.
func (f *flow) answeredBy(names []string) error {
	first := ""
	for i := range 5 {
		r := f.exchange()
		switch {
		case len(names) == 0 && r.Err() == nil:
			return fmt.Errorf("%s answers", r.Backend)
		case len(names) == 0:
			continue
		case r.Err() != nil:
			return r.Err()
		case i == 0:
			first = r.Backend
		}
		if r.Backend != first || !slices.Contains(names, first) {
			return fmt.Errorf("%s answers, %s before, want one of %v", r.Backend, first, names)
		}
	}
	return nil
}

// endFlows closes the sockets of a script.
func (s *stage) endFlows() {
	for _, f := range s.flows {
		f.close()
	}
}
