// SPDX-License-Identifier: Apache-2.0

package model

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
)

// event is a packet, or a change of an endpoint.
type event struct {
	Arrival
	set      int
	endpoint int
	state    State
}

func (e event) isChange() bool { return e.Frame == nil }

// source draws events. What it draws depends on the seed and on the flows that
// the model knows.
type source struct {
	*rand.Rand
	cluster *cluster
	model   *Model
	waiting []event
	ids     uint32
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func (s *source) oneIn(n int) bool { return s.IntN(n) == 0 }

// next draws an event.
func (s *source) next() event {
	if len(s.waiting) > 0 {
		e := s.waiting[0]
		s.waiting = s.waiting[1:]
		return e
	}
	switch n := s.IntN(1000); {
	case n < 4:
		set := s.IntN(len(s.cluster.sets))
		if count := len(s.cluster.sets[set].ports[0].Endpoints); count > 0 {
			return event{set: set, endpoint: s.IntN(count), state: pick(s.Rand, Draining, Dead)}
		}
		return s.next()
	case n < 300 || len(s.model.Order) == 0:
		return s.finish(s.request(), s.hookIn())
	case n < 820:
		return s.ofFlow()
	case n < 910:
		p, hook := s.complaint()
		return s.finish(p, hook)
	case n < 960:
		return s.inTunnel()
	case n < 970:
		return s.tooBigForTunnel()
	case n < 980:
		return s.echo()
	default:
		return s.stray()
	}
}

func (s *source) hookIn() Hook { return Hook(s.IntN(2)) }

// client draws who sends.
func (s *source) client(six bool) netip.Addr {
	net, host := 100, 1+s.IntN(8)
	switch s.IntN(16) {
	case 0, 1, 2:
		net += 1 + s.IntN(3)
	case 3:
		host += 200 // not in the guarded range of IPv4
	case 4, 5, 6:
		return podAddr(pick(s.Rand, "here1", "here2", "there1", "there2", "small", "silent", "lost"), six)
	case 7:
		return s.nobody(six)
	}
	if six {
		if host > 200 {
			return v4("2001:db8:%d:0:8000::%d", net, host)
		}
		return v4("2001:db8:%d::%d", net, host)
	}
	return v4("198.51.%d.%d", net, host)
}

// nobody draws a source that nobody has, or that should not be seen outside.
func (s *source) nobody(six bool) netip.Addr {
	if six {
		return netip.MustParseAddr(pick(s.Rand, "::", "::1", "ff02::1", "::ffff:198.51.100.1", "fd00:a::1", "fe80::1", "::2"))
	}
	return netip.MustParseAddr(pick(s.Rand, "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "10.0.0.1", "0.1.2.3"))
}

// request draws a packet for an address of ours.
func (s *source) request() *shape {
	six := s.oneIn(2)
	set := s.cluster.sets[s.IntN(len(s.cluster.sets))].spec
	if s.oneIn(3) {
		set = s.cluster.sets[0].spec
	}
	proto := pick[uint8](s.Rand, TCP, TCP, TCP, TCP, UDP, UDP, UDP, SCTP)
	kind := pick(s.Rand, ClusterIP, NodePort, NodePort, LoadBalancer, LoadBalancer, LoadBalancer, ExternalIP, ExternalIP)
	addr, port := set.address(kind, six), set.port(proto, kind)
	if kind == NodePort {
		addr = s.cluster.NodePortAddrs[0]
		if six {
			addr = s.cluster.NodePortAddrs[1]
		}
	}
	if s.oneIn(16) {
		port += uint16(1 + s.IntN(3))
	}
	src := s.client(six)
	if kind == ClusterIP && s.oneIn(2) {
		src = podAddr(pick(s.Rand, "here1", "there2"), six)
	}
	sport := pick(s.Rand, 1025, 40000, 50001, uint16(1+s.IntN(65535)))
	t := Tuple{Src: withPort(src, sport), Dst: withPort(addr, port), Proto: proto}
	return s.fill(&shape{tuple: t, flags: pick[byte](s.Rand, SYN, SYN, SYN, SYN, SYN, SYN|0xc0, SYN|ACK, ACK, RST, FIN|ACK, 0)})
}

// fill draws what does not name a flow.
func (s *source) fill(p *shape) *shape {
	p.ttl = pick[byte](s.Rand, 64, 64, 64, 64, 128, 255, 2, 1)
	if s.oneIn(64) {
		p.ttl = 0
	}
	if s.oneIn(8) {
		p.class = byte(s.Uint32())
	}
	p.seq, p.ack = s.Uint32(), s.Uint32()
	if s.oneIn(3) {
		p.words = s.IntN(11)
	}
	length := 0
	switch s.IntN(8) {
	case 0, 1, 2:
		length = s.IntN(64)
	case 3:
		length = 1200 + s.IntN(320)
	case 4:
		length = 1280 - 40 + s.IntN(300)
	}
	p.payload = make([]byte, length)
	for i := range min(length, 48) {
		p.payload[i] = byte(s.Uint32())
	}
	p.noSum = s.oneIn(12)
	if s.oneIn(14) && p.icmp == nil {
		if is6(p.tuple) {
			p.next = pick[byte](s.Rand, 0, 60)
			p.extension = pick(s.Rand, []byte{0, 0, 1, 4, 0, 0, 0, 0}, []byte{0, 1, 1, 12, 15: 0})
		} else {
			p.options = s.options()
		}
	}
	return p
}

func (s *source) options() []byte {
	return pick(s.Rand,
		[]byte{1, 1, 1, 1}, []byte{148, 4, 0, 0}, []byte{7, 7, 4, 0, 0, 0, 0, 0}, []byte{0, 0, 0, 0},
		[]byte{131, 7, 4, 1, 2, 3, 4, 0}, []byte{137, 7, 4, 1, 2, 3, 4, 0}, []byte{7, 1, 0, 0}, []byte{7, 9, 0, 0},
		[]byte{1, 1, 1, 1, 1, 1, 1, 1}, []byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, []byte{1, 7, 0, 0}, []byte{148, 0, 0, 0},
		[]byte{1, 131, 3, 4}, []byte{68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	)
}

// known draws a flow that the model knows, late ones more often.
func (s *source) known() (Tuple, *flow) {
	for range 8 {
		n := len(s.model.Order)
		at := s.IntN(n)
		if s.oneIn(2) {
			at = max(at, n-1-s.IntN(10))
		}
		at = max(at, 0)
		if f := s.model.Flows[s.model.Order[at]]; f != nil {
			return s.model.Order[at], f
		}
	}
	return s.model.Order[0], nil
}

// where a direction of a flow is seen.
func (s *source) where(f *flow) Hook {
	if f != nil && f.action == answer && !s.oneIn(20) || s.oneIn(40) {
		return Egress
	}
	return s.hookIn()
}

// ofFlow draws a packet of a known flow.
func (s *source) ofFlow() event {
	t, f := s.known()
	p := &shape{tuple: t, flags: pick[byte](s.Rand, ACK, ACK, ACK|8, ACK, SYN, SYN|ACK, FIN|ACK, RST)}
	if f != nil && f.action == answer && s.oneIn(3) || f != nil && f.action == comeback && s.oneIn(3) {
		p.flags = SYN | ACK
	}
	return s.finish(s.fill(p), s.where(f))
}

// complaint draws an ICMP error about a packet that went out of here.
func (s *source) complaint() (*shape, Hook) {
	t, f := s.known()
	inner := s.fill(&shape{tuple: t.turned(), flags: ACK})
	inner.icmp = nil
	if s.oneIn(6) {
		inner.tuple.Dst = withPort(inner.tuple.Dst.Addr(), inner.tuple.Dst.Port()^1)
	}
	body := inner.packet()
	if s.oneIn(3) {
		body = body[:min(len(body), pick(s.Rand, 20, 24, 28, 44, 48, 60, s.IntN(80)))]
	} else {
		body = body[:min(len(body), 500)]
	}
	from := s.client(is6(t))
	if s.oneIn(2) {
		from = t.Src.Addr()
	}
	to := t.Dst.Addr()
	if s.oneIn(12) {
		to = s.client(is6(t))
	}
	icmp := make([]byte, 8)
	o := &shape{tuple: Tuple{Src: withPort(from, 0), Dst: withPort(to, 0), Proto: ICMP}}
	icmp[0], icmp[1] = pick[byte](s.Rand, 3, 3, 11, 12, 5, 0), byte(s.IntN(6))
	if is6(t) {
		o.tuple.Proto = ICMPv6
		icmp[0], icmp[1] = pick[byte](s.Rand, 1, 2, 3, 4, 0, 129, 135), byte(s.IntN(6))
	}
	binary.BigEndian.PutUint32(icmp[4:], uint32(1000+s.IntN(600)))
	o.icmp = append(icmp, body...)
	return s.fill(o), s.where(f)
}

func (s *source) echo() event {
	p := s.request()
	p.tuple.Proto = ICMP
	p.icmp = []byte{8, 0, 0, 0, 1, 2, 3, 4, 5}
	if is6(p.tuple) {
		p.tuple.Proto, p.icmp[0] = ICMPv6, 128
	}
	p.extension, p.options = nil, nil
	return s.finish(p, s.hookIn())
}

// stray draws what is nobody's, or of a protocol without ports.
func (s *source) stray() event {
	p := s.request()
	switch s.IntN(4) {
	case 0:
		p.tuple.Proto = pick[uint8](s.Rand, 2, 4, 41, 47, 50, 51, 43, 44, 59, 89, 103, 135)
	case 1:
		p.tuple.Dst = withPort(s.client(is6(p.tuple)), p.tuple.Dst.Port())
	case 2:
		p.tuple.Dst = withPort(s.client(is6(p.tuple)), 50000+uint16(s.IntN(200)))
	default:
		p.tuple.Dst = withPort(s.cluster.NodePortAddrs[s.IntN(1)+map[bool]int{true: 1}[is6(p.tuple)]], 50000+uint16(s.IntN(200)))
	}
	return s.finish(p, Hook(s.IntN(3)))
}

// finish sends a packet of a shape.
func (s *source) finish(p *shape, hook Hook) event {
	return s.send(s.pieces(p), func(ip []byte) []byte { return ip }, hook)
}

// pieces is a packet whole or in fragments, not always in order.
func (s *source) pieces(p *shape) [][]byte {
	ip := p.packet()
	if !s.oneIn(20) || p.extension != nil || len(ip) <= 60 {
		return [][]byte{ip}
	}
	s.ids++
	pieces := fragment(ip, s.ids, 8*(1+s.IntN(1+len(ip)/12)))
	if s.oneIn(4) {
		s.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	}
	return pieces[:min(len(pieces), 4)]
}

// send makes frames of packets, whole or damaged, once or twice; the first is
// for now.
func (s *source) send(packets [][]byte, wrap func([]byte) []byte, hook Hook) event {
	device := s.cluster.Devices[0]
	if s.oneIn(4) {
		device = s.cluster.Devices[s.IntN(len(s.cluster.Devices))]
	}
	var events []event
	for _, ip := range packets {
		a := Arrival{Hook: hook, Device: device, Frame: s.damage(onLink(device.MAC, wrap(ip)))}
		if a.Hook != XDP && len(a.Frame) < link+40 {
			a.Hook = XDP // test runs of tc want a whole IP header, and so does the stack
		}
		events = append(events, event{Arrival: a})
		if len(packets) == 1 && s.oneIn(16) {
			events = append(events, events[0])
		}
	}
	s.waiting = append(s.waiting, events[1:]...)
	return events[0]
}

// damage spoils some frames.
func (s *source) damage(f []byte) []byte {
	if !s.oneIn(4) {
		return f
	}
	v4 := f[12] == 8
	switch s.IntN(12) {
	case 0, 1: // a bit of the headers
		i := 12 + s.IntN(min(len(f)-12, 90))
		f[i] ^= 1 << s.IntN(8)
		if s.oneIn(2) && v4 {
			fix(f[link:])
		}
	case 2: // cut off
		f = f[:15+s.IntN(len(f)-15)]
	case 3, 4: // padded
		f = append(f, make([]byte, s.IntN(40))...)
		f[len(f)-1] = byte(s.Uint32())
	case 5: // a length that is not the packet's
		at := link + 4
		if v4 {
			at = link + 2
		}
		binary.BigEndian.PutUint16(f[at:], uint16(max(0, int(binary.BigEndian.Uint16(f[at:]))+s.IntN(60)-40)))
		if v4 {
			fix(f[link:])
		}
	case 6: // a VLAN tag
		f = append(append(append([]byte(nil), f[:12]...), 0x81, 0, 0, 5), f[12:]...)
	case 7: // any byte
		f[12+s.IntN(len(f)-12)] = byte(s.Uint32())
	case 8: // for another machine
		f[5] ^= 1
	case 9: // to everybody
		copy(f, []byte{255, 255, 255, 255, 255, 255})
	case 10: // class of traffic, flow label, id
		f[link+1] = byte(s.Uint32())
		if v4 {
			f[link+5] = byte(s.Uint32())
			fix(f[link:])
		}
	case 11: // cut off, and the length says so
		if v4 && len(f) > link+20 {
			f = f[:link+20+s.IntN(len(f)-link-20)]
			binary.BigEndian.PutUint16(f[link+2:], uint16(len(f)-link))
			fix(f[link:])
		} else if !v4 && len(f) > link+40 {
			f = f[:link+40+s.IntN(len(f)-link-40)]
			binary.BigEndian.PutUint16(f[link+4:], uint16(len(f)-link-40))
		}
		if s.oneIn(2) {
			f = append(f, make([]byte, s.IntN(30))...)
		}
	}
	return f
}
