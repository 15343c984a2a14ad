// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

// otherNode is the address of a node that sends us packets in tunnels.
func otherNode(six bool) netip.Addr {
	if six {
		return netip.MustParseAddr("fd00:b::c8")
	}
	return netip.MustParseAddr("172.16.0.200")
}

// tunnelled puts a packet into another one.
func (s *source) tunnelled(from, to netip.Addr, ip []byte) []byte {
	proto := uint8(ipInIP)
	if to.Is6() {
		proto = ip6InIP
	}
	outer := ipHeader(proto, from, to, len(ip))
	if s.oneIn(4) {
		outer[1] |= byte(s.IntN(256)) & 0xf0
		if to.Is4() {
			fixChecksum(outer)
		}
	}
	return append(outer, ip...)
}

// inTunnel draws a packet that comes in a tunnel: a request, one of a flow, or
// an error about an answer.
func (s *source) inTunnel() event {
	var p *shape
	switch n := s.IntN(6); {
	case n < 3:
		p = s.request()
		if port := p.tuple.Dst.Port(); port > 30000 && s.oneIn(2) {
			p.tuple.Dst = withPort(otherNode(is6(p.tuple)), port)
		}
	case n < 5:
		t, _ := s.known()
		p = s.fill(&shape{tuple: t, flags: pick[byte](s.Rand, ACK, ACK, SYN, FIN|ACK, RST)})
	default:
		p, _ = s.complaint()
	}
	six := is6(p.tuple)
	end := podAddr(pick(s.Rand, "here1", "here1", "here1", "here2", "there1", "silent"), six)
	return s.send(s.pieces(p), func(ip []byte) []byte { return s.tunnelled(otherNode(six), end, ip) }, s.hookIn())
}

// tooBigForTunnel draws a router's word that a packet of ours in a tunnel does
// not fit.
func (s *source) tooBigForTunnel() event {
	t, f := s.known()
	for range 20 {
		if f != nil && f.action == tunnel {
			break
		}
		t, f = s.known()
	}
	six := is6(t)
	ends := Tuple{Src: withPort(otherNode(six), 0), Dst: withPort(podAddr("there1", six), 0)}
	if f != nil {
		ends = f.to
	}
	body := s.tunnelled(ends.Src.Addr(), ends.Dst.Addr(), s.fill(&shape{tuple: t, flags: ACK}).packet())
	if s.oneIn(2) {
		body = body[:min(len(body), pick(s.Rand, 28, 48, 48, 52, 68, 87, 88, 88, 100, s.IntN(120)))]
	} else {
		body = body[:min(len(body), 500)]
	}
	o := &shape{tuple: Tuple{Src: withPort(otherNode(six), 0), Dst: withPort(ends.Src.Addr(), 0), Proto: ICMP}}
	o.icmp = append([]byte{3, pick[byte](s.Rand, 4, 4, 4, 1), 0, 0, 0, 0, 0, 0}, body...)
	if six {
		o.tuple.Proto = ICMPv6
		o.icmp[0], o.icmp[1] = pick[byte](s.Rand, 2, 2, 2, 1), 0
	}
	binary.BigEndian.PutUint32(o.icmp[4:], pick(s.Rand, 1500, 1400, 1300, 1280, 600, uint32(s.IntN(100)), s.Uint32()))
	return s.finish(s.fill(o), s.hookIn())
}
