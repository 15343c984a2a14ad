// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

// carryOut does what a flow says of a packet that came in.
func (m *Model) carryOut(p *packet, f *flow, a Arrival) Outcome {
	switch f.action {
	case deliver:
		return m.rewrite(p, f.to, false)
	case answer:
		return pass(None) // translated where it leaves
	}
	return m.sendOn(p, f, a)
}

// sendOn sends a packet past the stack: a router's work.
func (m *Model) sendOn(p *packet, f *flow, a Arrival) Outcome {
	way := m.World.route(f.to.Dst.Addr())
	if way == nil {
		return drop(NoRoute)
	}
	if a.cannotSend(way) {
		return Outcome{Verdict: Pass, Frame: p.frame}
	}
	length, limit := p.length, way.MTU
	if f.action == tunnel {
		limit -= p.ipSize()
	}
	if a.Segment > 0 {
		length = p.headers() + a.Segment
	}
	// Nobody is told about an error (RFC 1122, 3.2.2; RFC 4443, 2.4).
	switch {
	case p.ttl <= 1 && p.form == message:
		return drop(None)
	case p.ttl <= 1:
		return p.errorAbout(timeExceeded, Expired, 0)
	case !way.Unresolved && length > limit && p.form == message:
		return drop(None)
	case !way.Unresolved && length > limit:
		return p.errorAbout(packetTooBig, TooBig, limit)
	}
	var o Outcome
	if f.action == tunnel {
		o = p.encapsulate(f.to)
	} else {
		o = m.rewrite(p, f.to, true)
	}
	return o.by(way)
}

// headers are the bytes before the payload of a TCP segment or a UDP datagram.
func (p *packet) headers() int {
	if p.tuple.Proto == TCP {
		return p.l4 - link + int(p.frame[p.l4+12]>>4)*4
	}
	return p.l4 - link + 8
}

// cannotSend: XDP can neither ask for a neighbour nor send by every device;
// such packets are left to tc as they came.
func (a Arrival) cannotSend(way *Route) bool {
	return a.Hook == XDP && (way.Unresolved || way.Device != a.Device && !way.Device.XDPTarget)
}

// by gives a packet the link header of its next hop. While that is unknown the
// kernel writes it.
func (o Outcome) by(way *Route) Outcome {
	o.Verdict, o.Device = Send, way.Device
	if !way.Unresolved {
		copy(o.Frame, way.GatewayMAC[:])
		copy(o.Frame[6:], way.Device.MAC[:])
	}
	return o
}

// rewrite gives a packet another tuple, and one hop less if it is sent on. The
// checksums follow: what was right is right, what was wrong stays as wrong.
func (m *Model) rewrite(p *packet, to Tuple, hop bool) Outcome {
	var sums []*covered
	if !p.v6 {
		sums = append(sums, ipChecksum(p.frame, link))
	}
	if c := p.transportChecksum(); c != nil {
		sums = append(sums, c)
	}
	setAddresses(p.frame[link:], p.v6, to.Src.Addr(), to.Dst.Addr())
	if hop {
		p.takeHop()
	}
	if p.form != later {
		binary.BigEndian.PutUint16(p.frame[p.l4:], to.Src.Port())
		binary.BigEndian.PutUint16(p.frame[p.l4+2:], to.Dst.Port())
	}
	return p.finish(sums)
}

func (p *packet) finish(sums []*covered) Outcome {
	o := Outcome{Verdict: Pass, Frame: p.frame}
	for _, c := range sums {
		c.restore(p.frame)
		if !c.udp {
			o.Either = append(o.Either, c.at)
		}
	}
	return o
}

func (p *packet) takeHop() {
	if p.v6 {
		p.frame[link+7]--
	} else {
		p.frame[link+8]--
	}
}

func setAddresses(ip []byte, v6 bool, src, dst netip.Addr) {
	if v6 {
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
	} else {
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
	}
}
