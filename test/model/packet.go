// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

const link = 14 // bytes of the link header

type form int

const (
	other   form = iota // a protocol that is not translated
	broken              // cannot be understood, or asks for what is not done
	whole               // its tuple is complete
	first               // fragment with ports
	later               // fragment without ports
	message             // ICMP
)

// Tuple names a direction of a flow.
type Tuple struct {
	Src, Dst netip.AddrPort
	Proto    uint8
}

func (t Tuple) turned() Tuple { return Tuple{t.Dst, t.Src, t.Proto} }

// packet is a frame that was looked at.
type packet struct {
	frame  []byte
	form   form
	v6     bool
	l4     int // where the transport header begins
	length int // of the IP packet, as it says itself
	ttl    byte
	flags  byte   // TCP; of SCTP that opens, SYN
	id     uint32 // of the fragmented datagram
	tuple  Tuple
	end    netip.Addr // of the tunnel that the packet came in; else invalid
}

// TCP flags.
const (
	FIN = 1
	SYN = 2
	RST = 4
	ACK = 16
)

func (p *packet) ipSize() int {
	if p.v6 {
		return 40
	}
	return 20
}

// tail is where the IP packet ends; what follows is padding of the link.
func (p *packet) tail() int { return min(link+p.length, len(p.frame)) }

// tunnelled tells whether another node chose the endpoint.
func (p *packet) tunnelled() bool { return p.end.IsValid() }

// initChunk opens an association of SCTP.
const initChunk = 1

// opens tells whether a packet begins a TCP connection or an SCTP association.
func (p *packet) opens() bool { return p.flags&(SYN|ACK) == SYN }

// parse looks at a frame. Frames with a VLAN tag are of no family of ours.
func parse(frame []byte) *packet {
	p := &packet{frame: frame}
	if len(frame) < link {
		return p
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		p.form = p.parse4(frame[link:])
	case 0x86dd:
		p.v6 = true
		p.form = p.parse6(frame[link:])
	}
	return p
}

func (p *packet) parse4(ip []byte) form {
	if len(ip) < 20 || ip[0]>>4 != 4 {
		return broken
	}
	header := int(ip[0]&15) * 4
	p.length = int(binary.BigEndian.Uint16(ip[2:]))
	if header < 20 || p.length < header || len(ip) < p.length || !optionsAreFine(ip[20:header]) {
		return broken
	}
	fragment := binary.BigEndian.Uint16(ip[6:])
	offset, more := fragment&0x1fff != 0, fragment&0x2000 != 0
	p.l4, p.ttl, p.id = link+header, ip[8], uint32(binary.BigEndian.Uint16(ip[4:]))
	p.tuple = Tuple{
		Src:   netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:])), 0),
		Dst:   netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:])), 0),
		Proto: ip[9],
	}
	return p.parseTransport(ICMP, offset, more, offset || more)
}

// optionsAreFine walks the options of IPv4. Source routes are left to the stack
// and its settings, and so are more than eight options.
func optionsAreFine(options []byte) bool {
	for seen := 0; len(options) > 0; seen++ {
		switch {
		case seen == 8:
			return false
		case options[0] == 0: // end of options
			return true
		case options[0] == 1: // no operation
			options = options[1:]
			continue
		case options[0] == 131 || options[0] == 137: // source routes
			return false
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return false
		}
		options = options[options[1]:]
	}
	return true
}

func (p *packet) parse6(ip []byte) form {
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return broken
	}
	p.length = 40 + int(binary.BigEndian.Uint16(ip[4:]))
	if len(ip) < p.length {
		return broken
	}
	p.ttl = ip[7]
	next, at := ip[6], 40
	fragmented, offset, more := false, false, false
	// Three extension headers: hop-by-hop and destination options, fragment.
	for range 3 {
		if next != 0 && next != 60 && next != 44 || offset {
			break
		}
		if len(ip) < at+8 {
			return broken
		}
		size := 8 * (int(ip[at+1]) + 1)
		if next == 44 {
			size = 8
			where := binary.BigEndian.Uint16(ip[at+2:])
			fragmented, offset, more = true, where&0xfff8 != 0, where&1 != 0
			p.id = binary.BigEndian.Uint32(ip[at+4:])
		}
		next, at = ip[at], at+size
	}
	if link+at > 1024 {
		return broken
	}
	p.l4 = link + at
	p.tuple = Tuple{
		Src:   netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[8:])), 0),
		Dst:   netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[24:])), 0),
		Proto: next,
	}
	return p.parseTransport(ICMPv6, offset, more, fragmented)
}

// parseTransport reads the ports, where there are any. ICMP in fragments is
// nobody's business here.
func (p *packet) parseTransport(icmp uint8, offset, more, fragmented bool) form {
	if p.tuple.Proto == icmp && !fragmented {
		if p.tail() < p.l4+8 {
			return broken
		}
		return message
	}
	size := map[uint8]int{TCP: 20, UDP: 8, SCTP: 12}[p.tuple.Proto]
	switch {
	case size == 0:
		return other
	case offset:
		return later
	case p.tail() < p.l4+size:
		return broken
	}
	l4 := p.frame[p.l4:p.tail()]
	switch {
	case p.tuple.Proto == TCP && l4[12]>>4 < 5:
		return broken
	case p.tuple.Proto == TCP:
		p.flags = l4[13]
	case p.tuple.Proto == SCTP && len(l4) > 12 && l4[12] == initChunk:
		p.flags = SYN
	}
	p.setPorts(binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:]))
	if more {
		return first
	}
	return whole
}

func (p *packet) setPorts(src, dst uint16) {
	p.tuple.Src = netip.AddrPortFrom(p.tuple.Src.Addr(), src)
	p.tuple.Dst = netip.AddrPortFrom(p.tuple.Dst.Addr(), dst)
}
