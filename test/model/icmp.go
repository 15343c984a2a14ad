// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
)

func (p *packet) isError() bool {
	t := p.frame[p.l4]
	if p.v6 {
		return t >= 1 && t <= 4
	}
	return t == 3 || t == 11 || t == 12
}

func (p *packet) isEcho() bool { return p.v6 && p.frame[p.l4] == 128 || !p.v6 && p.frame[p.l4] == 8 }

// icmpIn is ICMP that came in: errors about what we translated, and echo
// requests to addresses that nobody else answers for.
func (m *Model) icmpIn(p *packet, a Arrival) Outcome {
	if o, done := m.tunnelTooBig(p, a); done {
		return o
	}
	if p.isError() {
		return m.errorIn(p, a)
	}
	if !p.isEcho() || !m.World.published(p.tuple.Dst.Addr()) {
		return pass(None)
	}
	if spoofed(p.tuple.Src.Addr()) {
		return drop(Spoofed)
	}
	return p.echoReply()
}

// about returns the flow that an error belongs to. The packet inside is one
// that went out of here: turned round, it has the tuple of the direction that
// the error travels in.
func (m *Model) about(p *packet) (key Tuple, ports int, f *flow) {
	if p.tail() < p.l4+8 {
		return key, 0, nil
	}
	inner := p.frame[p.l4+8 : p.tail()]
	var src, dst netip.Addr
	size := 40
	switch {
	case p.v6:
		if len(inner) < 40 || inner[0]>>4 != 6 {
			return key, 0, nil
		}
		src, dst = netip.AddrFrom16([16]byte(inner[8:])), netip.AddrFrom16([16]byte(inner[24:]))
		key.Proto = inner[6]
		if key.Proto == 44 {
			if len(inner) < 48 || binary.BigEndian.Uint16(inner[42:])&0xfff8 != 0 {
				return key, 0, nil
			}
			key.Proto, size = inner[40], 48
		}
	default:
		if len(inner) < 20 || inner[0]>>4 != 4 || inner[0]&15 < 5 || binary.BigEndian.Uint16(inner[6:])&0x1fff != 0 {
			return key, 0, nil
		}
		src, dst = netip.AddrFrom4([4]byte(inner[12:])), netip.AddrFrom4([4]byte(inner[16:]))
		key.Proto = inner[9]
		size = int(inner[0]&15) * 4
	}
	if len(inner) < size+4 || key.Proto != TCP && key.Proto != UDP && key.Proto != SCTP {
		return key, 0, nil
	}
	key.Src = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(inner[size+2:]))
	key.Dst = netip.AddrPortFrom(src, binary.BigEndian.Uint16(inner[size:]))
	return key, p.l4 + 8 + size, m.Flows[key]
}

func (m *Model) errorIn(p *packet, a Arrival) Outcome {
	key, ports, f := m.about(p)
	if f == nil || f.action == answer {
		return pass(None)
	}
	switch f.action {
	case tunnel: // about an answer: for the node that sent that
		return m.sendOn(p, f, a)
	case deliver:
		return p.translateError(key, ports, f, false)
	}
	way := m.World.route(f.to.Dst.Addr())
	switch {
	case way == nil:
		return drop(NoRoute)
	case a.cannotSend(way):
		return Outcome{Verdict: Pass, Frame: p.frame}
	case p.ttl <= 1:
		return drop(None) // no error about an error
	}
	return p.translateError(key, ports, f, true).by(way)
}

// icmpOut is an error that a pod here sends, or the node about a pod's packet.
func (m *Model) icmpOut(p *packet) Outcome {
	if !p.isError() {
		return pass(None)
	}
	key, ports, f := m.about(p)
	if f == nil || f.action != answer {
		return pass(None)
	}
	return p.translateError(key, ports, f, false)
}

// translateError gives the packet inside its first tuple back, and the error
// to whom that was from. Its sender keeps its address, unless it is the endpoint
// itself, which clients know by the VIP, or the error goes to an endpoint
// elsewhere, which is told by the address that it knows us by. The inner
// transport checksum stays: it is often cut off, and nobody checks it.
func (p *packet) translateError(key Tuple, ports int, f *flow, hop bool) Outcome {
	inner := p.l4 + 8
	var sums []*covered
	if !p.v6 {
		sums = append(sums, ipChecksum(p.frame, link), ipChecksum(p.frame, inner))
	}
	sums = append(sums, p.transportChecksum()) // covers the inner one, so last
	src := p.tuple.Src.Addr()
	if src == key.Src.Addr() || f.action == forward {
		src = f.to.Src.Addr()
	}
	setAddresses(p.frame[link:], p.v6, src, f.to.Dst.Addr())
	if hop {
		p.takeHop()
	}
	first := f.to.turned()
	setAddresses(p.frame[inner:], p.v6, first.Src.Addr(), first.Dst.Addr())
	binary.BigEndian.PutUint16(p.frame[ports:], first.Src.Port())
	binary.BigEndian.PutUint16(p.frame[ports+2:], first.Dst.Port())
	return p.finish(sums)
}
