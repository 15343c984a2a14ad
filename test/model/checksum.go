// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

// Sum is the ones' complement sum of RFC 1071.
func Sum(parts ...[]byte) uint16 {
	var sum uint32
	for _, data := range parts {
		for i := 0; i+1 < len(data); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(data[i:]))
		}
		if len(data)%2 == 1 {
			sum += uint32(data[len(data)-1]) << 8
		}
		sum = sum>>16 + sum&0xffff
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Pseudo is the header that transport checksums cover besides their own.
func Pseudo(src, dst netip.Addr, proto uint8, length int) []byte {
	p := append(src.AsSlice(), dst.AsSlice()...)
	return append(p, 0, 0, byte(length>>8), byte(length), 0, 0, 0, proto)
}

// covered is a checksum in a frame. A message with a right checksum sums up to
// 0xffff; one with a wrong checksum to something else, and that is what has to
// stay: what was damaged must not arrive mended.
type covered struct {
	at     int // of the field
	parts  func() [][]byte
	before uint16
	udp    bool
}

func newCovered(at int, udp bool, parts func() [][]byte) *covered {
	return &covered{at: at, parts: parts, before: Sum(parts()...), udp: udp}
}

// restore makes the sum what it was, after bytes that it covers have changed.
func (c *covered) restore(frame []byte) {
	field := frame[c.at : c.at+2]
	field[0], field[1] = 0, 0
	rest := Sum(c.parts()...)
	value := uint32(c.before) + uint32(^rest)
	value = value>>16 + value&0xffff
	if value == 0 && c.udp {
		value = 0xffff // zero would say that there is none
	}
	binary.BigEndian.PutUint16(field, uint16(value))
}

// ipChecksum is the checksum of the IPv4 header at an offset, nil where the
// header is cut off.
func ipChecksum(frame []byte, at int) *covered {
	end := at + int(frame[at]&15)*4
	return newCovered(at+10, false, func() [][]byte { return [][]byte{frame[at:min(end, len(frame))]} })
}

// transportChecksum is that of a packet, nil if it has none.
func (p *packet) transportChecksum() *covered {
	at := map[uint8]int{TCP: 16, UDP: 6, ICMP: 2, ICMPv6: 2}[p.tuple.Proto]
	if at == 0 || p.form == later {
		return nil
	}
	frame := p.frame
	if p.tuple.Proto == UDP && binary.BigEndian.Uint16(frame[p.l4+at:]) == 0 {
		return nil // the sender computed none
	}
	return newCovered(p.l4+at, p.tuple.Proto == UDP, func() [][]byte {
		if p.tuple.Proto == ICMP {
			return [][]byte{frame[p.l4:p.tail()]}
		}
		src, dst := addresses(frame, p.v6)
		return [][]byte{Pseudo(src, dst, p.tuple.Proto, p.tail()-p.l4), frame[p.l4:p.tail()]}
	})
}

func addresses(frame []byte, v6 bool) (src, dst netip.Addr) {
	ip := frame[link:]
	if v6 {
		return netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	}
	return netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
}
