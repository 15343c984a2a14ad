// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"encoding/binary"
	"net/netip"
)

// address is where an endpoint serves a port: a netip.AddrPort without a
// pointer, so that neither a first load nor the garbage collector has to go
// through every endpoint there is, and of fields that fit registers.
type address struct {
	high, low uint64 // an IPv4 address in its mapped form
	port      uint16 // never 0, so that the zero address is none
}

func addressOf(ip netip.Addr, port uint16) address {
	b := ip.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), port}
}

// addrPort is the reverse of addressOf. The model knows no mapped addresses.
func (a address) addrPort() netip.AddrPort {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.high)
	binary.BigEndian.PutUint64(b[8:], a.low)
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), a.port)
}

func (a address) compare(b address) int {
	return cmp.Or(cmp.Compare(a.high, b.high), cmp.Compare(a.low, b.low), cmp.Compare(a.port, b.port))
}
