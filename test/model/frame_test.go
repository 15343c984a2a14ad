// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

// shape is a packet to be built, with everything right about it.
type shape struct {
	tuple     Tuple
	ttl       byte
	class     byte   // of traffic
	flags     byte   // TCP; SCTP has a chunk like it
	options   []byte // of IPv4
	extension []byte // of IPv6; its first byte is filled in
	next      byte   // type of the extension
	words     int    // of TCP options
	payload   []byte
	icmp      []byte // instead of a transport header and payload
	noSum     bool   // UDP
	ack, seq  uint32
}

func (s *shape) transport() []byte {
	var l4 []byte
	src, dst := s.tuple.Src.Addr(), s.tuple.Dst.Addr()
	at := 0
	switch s.tuple.Proto {
	case TCP:
		l4 = make([]byte, 20+4*s.words)
		l4[12], l4[13], at = byte(5+s.words)<<4, s.flags, 16
		binary.BigEndian.PutUint32(l4[4:], s.seq)
		binary.BigEndian.PutUint32(l4[8:], s.ack)
		binary.BigEndian.PutUint16(l4[14:], 0xfaf0)
		for i := 20; i < len(l4); i++ {
			l4[i] = 1
		}
	case UDP:
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(s.payload)))
		at = 6
	case SCTP:
		l4 = make([]byte, 12)
		binary.BigEndian.PutUint32(l4[8:], s.seq)
		if s.flags != 0 { // else too short for a chunk
			l4 = append(l4, s.chunk(), 0, 0, 4)
		}
	case ICMP, ICMPv6:
		l4 = append([]byte(nil), s.icmp...)
		at = 2
	default:
		l4 = make([]byte, 12)
	}
	if s.icmp == nil {
		binary.BigEndian.PutUint16(l4, s.tuple.Src.Port())
		binary.BigEndian.PutUint16(l4[2:], s.tuple.Dst.Port())
		l4 = append(l4, s.payload...)
	}
	if at == 0 || s.noSum {
		return l4
	}
	sum := Sum(l4)
	if s.tuple.Proto != ICMP {
		sum = Sum(Pseudo(src, dst, s.tuple.Proto, len(l4)), l4)
	}
	if sum == 0xffff && s.tuple.Proto == UDP {
		sum = 0
	}
	binary.BigEndian.PutUint16(l4[at:], ^sum)
	return l4
}

// chunk is the type of the first one of SCTP that does what TCP's flags do.
func (s *shape) chunk() byte {
	switch s.flags & (SYN | ACK) {
	case SYN:
		return initChunk
	case SYN | ACK:
		return 2
	case ACK:
		return 3
	}
	return 0 // data
}

// packet is the shape's IP packet.
func (s *shape) packet() []byte {
	l4 := s.transport()
	src, dst := s.tuple.Src.Addr(), s.tuple.Dst.Addr()
	if src.Is4() {
		ip := append(ipHeader(s.tuple.Proto, src, dst, len(s.options)+len(l4)), s.options...)
		ip[0], ip[1], ip[8] = byte(0x45+len(s.options)/4), s.class, s.ttl
		fix(ip)
		return append(ip, l4...)
	}
	ip := ipHeader(s.tuple.Proto, src, dst, len(s.extension)+len(l4))
	ip[0], ip[1], ip[7] = 0x60|s.class>>4, s.class<<4, s.ttl
	if s.extension != nil {
		ip[6] = s.next
		ip = append(ip, s.extension...)
		ip[40] = s.tuple.Proto
	}
	return append(ip, l4...)
}

// fix computes the checksum of an IPv4 header.
func fix(ip []byte) {
	if ip[0]>>4 != 4 {
		return
	}
	fixChecksum(ip[:min(len(ip), max(20, int(ip[0]&15)*4))])
}

// onLink puts a link header before a packet.
func onLink(to [6]byte, ip []byte) []byte {
	f := append([]byte(nil), to[:]...)
	f = append(f, 2, 0xbb, 0, 0, 0, 7)
	if ip[0]>>4 == 4 {
		f = append(f, 8, 0)
	} else {
		f = append(f, 0x86, 0xdd)
	}
	return append(f, ip...)
}

// fragment cuts a packet in pieces of so many bytes, a multiple of 8.
func fragment(ip []byte, id uint32, size int) [][]byte {
	header := 40
	if ip[0]>>4 == 4 {
		header = int(ip[0]&15) * 4
	}
	var out [][]byte
	rest := ip[header:]
	for at := 0; at < len(rest); at += size {
		piece := rest[at:min(at+size, len(rest))]
		more := at+size < len(rest)
		f := append([]byte(nil), ip[:header]...)
		if ip[0]>>4 == 4 {
			where := uint16(at / 8)
			if more {
				where |= 0x2000
			}
			binary.BigEndian.PutUint16(f[4:], uint16(id))
			binary.BigEndian.PutUint16(f[6:], where)
			binary.BigEndian.PutUint16(f[2:], uint16(header+len(piece)))
			fix(f)
		} else {
			where := uint16(at)
			if more {
				where |= 1
			}
			h := []byte{f[6], 0, byte(where >> 8), byte(where), 0, 0, 0, 0}
			binary.BigEndian.PutUint32(h[4:], id)
			f[6] = 44
			f = append(f, h...)
			binary.BigEndian.PutUint16(f[4:], uint16(8+len(piece)))
		}
		out = append(out, append(f, piece...))
	}
	return out
}

func is6(t Tuple) bool { return t.Src.Addr().Is6() }

func withPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
