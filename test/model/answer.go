// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

// complaint is an ICMP error by type and code, for IPv4 and IPv6.
type complaint struct{ type4, code4, type6, code6 byte }

var (
	portUnreachable = complaint{3, 3, 1, 4}
	timeExceeded    = complaint{11, 0, 3, 0}
	packetTooBig    = complaint{3, 4, 2, 0}
)

const ownTTL = 64

// refuse tells a client that nobody serves it: TCP by a reset, else ICMP.
func (p *packet) refuse(why Reason) Outcome {
	if p.tuple.Proto == TCP {
		return p.reset(why)
	}
	return p.errorAbout(portUnreachable, why, 0)
}

// writeIP makes a frame of a link header turned round, an IP header, and what
// follows.
func (p *packet) writeIP(proto byte, src, dst netip.Addr, rest []byte) []byte {
	f := append([]byte(nil), p.frame[6:12]...)
	f = append(append(f, p.frame[:6]...), p.frame[12:14]...)
	f = append(f, ipHeader(proto, src, dst, len(rest))...)
	return append(f, rest...)
}

func ipHeader(proto byte, src, dst netip.Addr, payload int) []byte {
	if src.Is6() {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, proto, ownTTL
		binary.BigEndian.PutUint16(ip[4:], uint16(payload))
		setAddresses(ip, true, src, dst)
		return ip
	}
	ip := make([]byte, 20)
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, ownTTL, proto // do not fragment
	binary.BigEndian.PutUint16(ip[2:], uint16(20+payload))
	setAddresses(ip, false, src, dst)
	fixChecksum(ip)
	return ip
}

// fixChecksum computes the checksum of an IPv4 header.
func fixChecksum(ip []byte) {
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^Sum(ip))
}

// reset answers a segment (RFC 9293, 3.10.7.1). Resets are not answered, and
// neither are segments with data, in fragments or behind options: the programs
// do not compute a checksum over what may be long.
func (p *packet) reset(why Reason) Outcome {
	if p.form != whole || p.flags&RST != 0 || p.l4 != link+p.ipSize() {
		return drop(why)
	}
	l4 := p.frame[p.l4:p.tail()]
	if size := int(l4[12]>>4) * 4; len(l4) != size {
		return drop(why)
	}
	tcp := make([]byte, 20)
	copy(tcp, l4[2:4])
	copy(tcp[2:], l4[:2])
	tcp[12] = 5 << 4
	if p.flags&ACK != 0 {
		copy(tcp[4:], l4[8:12])
		tcp[13] = RST
	} else {
		next := binary.BigEndian.Uint32(l4[4:])
		if p.flags&SYN != 0 {
			next++
		}
		if p.flags&FIN != 0 {
			next++
		}
		binary.BigEndian.PutUint32(tcp[8:], next)
		tcp[13] = RST | ACK
	}
	before := p.transportChecksum().before
	src, dst := p.tuple.Src.Addr(), p.tuple.Dst.Addr()
	f := p.writeIP(TCP, dst, src, tcp)
	at := link + p.ipSize() + 16
	c := newCovered(at, false, func() [][]byte {
		return [][]byte{Pseudo(dst, src, TCP, 20), f[link+p.ipSize():]}
	})
	c.before = before
	c.restore(f)
	return Outcome{Verdict: Back, Frame: f, Either: []int{at}, Reason: why}
}

// errorAbout tells the sender of a packet what is wrong with it, in the name of
// whom it was sent to. It carries the IP header and the transport header, where
// options are in the way 64 bytes of what follows. No error is sent about a
// later fragment (RFC 1122, 3.2.2), or about so little behind options that it
// may name no ports.
func (p *packet) errorAbout(c complaint, why Reason, mtu int) Outcome {
	quote := p.ipSize() + 8
	switch {
	case p.form == later:
		return drop(why)
	case p.l4 != link+p.ipSize():
		quote = p.ipSize() + 64
		if p.length < quote {
			return drop(why)
		}
	case p.tuple.Proto == TCP:
		quote += 12
	}
	return p.complain(c, why, mtu, quote)
}

// complain makes an error that carries so much of the packet.
func (p *packet) complain(c complaint, why Reason, mtu, quote int) Outcome {
	src, dst := p.tuple.Src.Addr(), p.tuple.Dst.Addr()
	body := make([]byte, 8, 8+quote)
	body[0], body[1] = c.type4, c.code4
	proto := byte(ICMP)
	if p.v6 {
		body[0], body[1] = c.type6, c.code6
		proto = ICMPv6
	}
	binary.BigEndian.PutUint32(body[4:], uint32(mtu))
	body = append(body, p.frame[link:link+quote]...)
	sum := Sum(body)
	if p.v6 {
		sum = Sum(Pseudo(dst, src, proto, len(body)), body)
	}
	binary.BigEndian.PutUint16(body[2:], ^sum)
	return Outcome{Verdict: Back, Frame: p.writeIP(proto, dst, src, body), Either: []int{link + p.ipSize() + 2}, Reason: why}
}

// echoReply answers for an address that no node has.
func (p *packet) echoReply() Outcome {
	sums := []*covered{p.transportChecksum()}
	ttl := link + 7
	if !p.v6 {
		sums = append(sums, ipChecksum(p.frame, link))
		ttl = link + 8
	}
	setAddresses(p.frame[link:], p.v6, p.tuple.Dst.Addr(), p.tuple.Src.Addr())
	p.frame[ttl] = ownTTL
	p.frame[p.l4] = 0
	if p.v6 {
		p.frame[p.l4] = 129
	}
	o := p.finish(sums)
	o.Verdict = Back
	var mac [6]byte
	copy(mac[:], o.Frame)
	copy(o.Frame, o.Frame[6:12])
	copy(o.Frame[6:], mac[:])
	return o
}
