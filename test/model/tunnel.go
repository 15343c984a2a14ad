// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Packets in packets (RFC 2003, RFC 2473).
const (
	ipInIP  = 4
	ip6InIP = 41
)

func (p *packet) tunnelProto() uint8 {
	if p.v6 {
		return ip6InIP
	}
	return ipInIP
}

// encapsulate puts a packet that is sent on into one to its endpoint. The class
// of traffic is the packet's own but for its two bits of congestion, which are
// none because nobody looks at them where it is taken out (RFC 6040, 4.3). The
// flow label is the client's port.
func (p *packet) encapsulate(to Tuple) Outcome {
	var sums []*covered
	if !p.v6 {
		sums = append(sums, ipChecksum(p.frame, link))
	}
	p.takeHop()
	o := p.finish(sums)
	outer := ipHeader(p.tunnelProto(), to.Src.Addr(), to.Dst.Addr(), p.length)
	if p.v6 {
		class := binary.BigEndian.Uint32(p.frame[link:]) & 0x0fc00000
		binary.BigEndian.PutUint32(outer, 6<<28|class|uint32(to.Src.Port()))
	} else {
		outer[1] = p.frame[link+1] & 0xfc
		fixChecksum(outer)
	}
	for i := range o.Either {
		o.Either[i] += len(outer)
	}
	if !p.v6 {
		o.Either = append(o.Either, link+10)
	}
	o.Frame = slices.Concat(p.frame[:link], outer, p.frame[link:])
	return o
}

// opened is the packet inside one that another node sent to an endpoint here, on
// behalf of a Service; nil when it is no such packet: tunnels of others may end
// at the same addresses.
func (m *Model) opened(p *packet) *packet {
	if p.form != other {
		return nil
	}
	ip, size := p.frame[link:], p.ipSize()
	switch {
	case p.v6 && ip[6] != ip6InIP:
		return nil
	case !p.v6 && (ip[9] != ipInIP || ip[0]&15 != 5 || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0):
		return nil
	}
	end := p.tuple.Dst.Addr()
	if !m.World.endsTunnel(end) || !m.insideIsOurs(p.v6, ip[size:]) {
		return nil
	}
	inside := parse(slices.Concat(p.frame[:link], ip[size:]))
	inside.end = end
	return inside
}

// insideIsOurs tells whether a packet in a tunnel is for a Service's address, for
// a NodePort, whose address is the other node's, or belongs to what was.
func (m *Model) insideIsOurs(v6 bool, ip []byte) bool {
	q := &packet{frame: append(make([]byte, link), ip...), v6: v6}
	if len(ip) < q.ipSize() {
		return false
	}
	offset := false
	if v6 {
		if ip[0]>>4 != 6 {
			return false
		}
		q.length, q.l4 = 40+int(binary.BigEndian.Uint16(ip[4:])), link+40
		q.tuple.Proto = ip[6]
		// Behind no other extension header a NodePort is looked for.
		if q.tuple.Proto == 44 {
			if len(ip) < 48 {
				return false
			}
			q.tuple.Proto, q.l4 = ip[40], link+48
			q.id, offset = binary.BigEndian.Uint32(ip[44:]), binary.BigEndian.Uint16(ip[42:])&0xfff8 != 0
		}
	} else {
		if ip[0]>>4 != 4 || ip[0]&15 < 5 {
			return false
		}
		q.length, q.l4 = int(binary.BigEndian.Uint16(ip[2:])), link+int(ip[0]&15)*4
		q.tuple.Proto = ip[9]
		q.id, offset = uint32(binary.BigEndian.Uint16(ip[4:])), binary.BigEndian.Uint16(ip[6:])&0x1fff != 0
	}
	src, dst := addresses(q.frame, v6)
	_, service := m.World.addresses[dst]
	switch {
	case service:
		return true
	case offset:
		_, found := m.ports[datagram{src, dst, q.tuple.Proto, q.id}]
		return found
	case v6 && q.tuple.Proto == ICMPv6 || !v6 && q.tuple.Proto == ICMP:
		_, _, f := m.about(q)
		return f != nil
	case q.tuple.Proto != TCP && q.tuple.Proto != UDP && q.tuple.Proto != SCTP || len(q.frame) < q.l4+4:
		return false
	}
	port := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(q.frame[q.l4+2:]))
	return m.World.services[frontend{port, q.tuple.Proto}] != nil || m.World.services[frontend{anyAddress(port), q.tuple.Proto}] != nil
}

// tunnelTooBig is a router's word that a packet which we put into a tunnel is
// too large for its link: the client hears it, about the packet that it sent
// and as if from the VIP.
func (m *Model) tunnelTooBig(p *packet, a Arrival) (o Outcome, done bool) {
	icmp, size := p.frame[p.l4:p.tail()], p.ipSize()
	if p.l4 != link+size || len(icmp) < 8+2*size+8 {
		return o, false
	}
	outer, inner := icmp[8:], icmp[8+size:]
	mtu := int(binary.BigEndian.Uint32(icmp[4:]))
	var end netip.Addr
	t := Tuple{Proto: inner[9]}
	if p.v6 {
		if icmp[0] != 2 || outer[6] != ip6InIP {
			return o, false
		}
		end, t.Proto = netip.AddrFrom16([16]byte(outer[24:])), inner[6]
	} else {
		if icmp[0] != 3 || icmp[1] != 4 || outer[9] != ipInIP || outer[0]&15 != 5 || inner[0]&15 != 5 ||
			binary.BigEndian.Uint16(inner[6:])&0x1fff != 0 {
			return o, false
		}
		end, mtu = netip.AddrFrom4([4]byte(outer[16:])), mtu&0xffff
	}
	if t.Proto != TCP && t.Proto != UDP && t.Proto != SCTP {
		return o, false
	}
	src, dst := addresses(slices.Concat(p.frame[:link], inner), p.v6)
	t.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(inner[size:]))
	t.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(inner[size+2:]))
	f, way := m.Flows[t], m.World.route(src)
	if f == nil || f.action != tunnel || f.to.Dst.Addr() != end || mtu <= size || way == nil || a.cannotSend(way) {
		return o, false
	}
	first := &packet{frame: slices.Concat(p.frame[:link], inner), v6: p.v6, tuple: t}
	return first.complain(packetTooBig, TooBig, mtu-size, size+8).by(way), true
}
