// SPDX-License-Identifier: Apache-2.0

// Needs root and Linux 6.1.

package model

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// fault is a mistake that programs could make: what it does to a packet that
// they were given and to what they made of it, and to what they remember.
type fault struct {
	name    string
	packet  func(p *packet, a Arrival, o *Outcome)
	choice  func(t Tuple, c *Choice)
	counted func(a Arrival, o Outcome) (Reason, bool) // once more
}

// changed applies to packets that were rewritten.
func changed(a Arrival, o *Outcome) bool {
	return o.Verdict != Drop && string(o.Frame) != string(a.Frame)
}

// out is what became of a packet, looked at.
func out(o *Outcome) *packet { return parse(o.Frame) }

// of limits a mistake to packets of a verdict and of a kind.
func of(v Verdict, kind func(before, after *packet) bool, mistake func(before, after *packet, o *Outcome)) func(*packet, Arrival, *Outcome) {
	return func(p *packet, a Arrival, o *Outcome) {
		if o.Verdict == v && changed(a, o) {
			if after := out(o); kind(p, after) {
				mistake(p, after, o)
			}
		}
	}
}

// every packet.
func every(_, _ *packet) bool { return true }

// byProto are packets that kept their protocol, not in fragments.
func byProto(proto uint8) func(_, _ *packet) bool {
	return func(p, q *packet) bool {
		return p.form == whole && q.form == whole && p.tuple.Proto == proto && q.tuple.Proto == proto
	}
}

// answeredBy are packets that became an ICMP error, by its type.
func answeredBy(type4, type6 byte) func(p, q *packet) bool {
	return func(p, q *packet) bool {
		return p.form != message && p.form != other && q.form == message && q.frame[q.l4] == map[bool]byte{true: type6, false: type4}[q.v6]
	}
}

// translatedError are ICMP errors that were translated.
func translatedError(p, q *packet) bool { return p.form == message && q.form == message && q.isError() }

func tunnelledOnly(p, q *packet) bool { return q.form == other && p.form != other }

func xor(at func(p, q *packet) int, bits byte) func(_, _ *packet, _ *Outcome) {
	return func(p, q *packet, o *Outcome) {
		if i := at(p, q); i < len(o.Frame) {
			o.Frame[i] ^= bits
		}
	}
}

func ttlAt(_, q *packet) int {
	if q.v6 {
		return link + 7
	}
	return link + 8
}

// letPass are packets that were dropped and ought to have been.
func letPass(kind func(p *packet) bool) func(*packet, Arrival, *Outcome) {
	return func(p *packet, a Arrival, o *Outcome) {
		if o.Verdict == Drop && kind(p) {
			o.Verdict, o.Frame = Pass, a.Frame
		}
	}
}

// eat drops packets that were let pass as they came.
func eat(kind func(p *packet) bool) func(*packet, Arrival, *Outcome) {
	return func(p *packet, a Arrival, o *Outcome) {
		if o.Verdict == Pass && !changed(a, o) && kind(p) {
			o.Verdict = Drop
		}
	}
}

var faults = []fault{
	{name: "a packet is sent on with all its hops", packet: of(Send, byProto(UDP), func(p, q *packet, o *Outcome) { o.Frame[ttlAt(p, q)] = p.ttl })},
	{name: "a packet for an endpoint here loses a hop", packet: of(Pass, byProto(TCP), xor(ttlAt, 1))},
	{name: "the wrong neighbour", packet: of(Send, every, xor(func(_, _ *packet) int { return 5 }, 1))},
	{name: "the wrong device", packet: func(_ *packet, a Arrival, o *Outcome) {
		if a.Hook == XDP && o.Verdict == Send && o.Device == nil {
			o.Device = a.Device
		}
	}},
	{name: "the IPv4 checksum", packet: of(Pass, func(p, q *packet) bool { return !p.v6 && q.form == whole }, xor(func(_, _ *packet) int { return link + 11 }, 4))},
	{name: "the TCP checksum", packet: of(Send, byProto(TCP), xor(func(_, q *packet) int { return q.l4 + 17 }, 1))},
	{name: "the UDP checksum", packet: of(Send, byProto(UDP), xor(func(_, q *packet) int { return q.l4 + 7 }, 1))},
	{name: "the ICMP checksum", packet: of(Send, translatedError, xor(func(_, q *packet) int { return q.l4 + 3 }, 1))},
	{name: "the checksum of what is inside an error", packet: of(Send, func(p, q *packet) bool { return translatedError(p, q) && !q.v6 },
		xor(func(_, q *packet) int { return q.l4 + 8 + 11 }, 1))},
	{name: "a checksum of UDP where there was none", packet: of(Pass, func(p, q *packet) bool {
		return byProto(UDP)(p, q) && binary.BigEndian.Uint16(p.frame[p.l4+6:]) == 0
	}, xor(func(_, q *packet) int { return q.l4 + 6 }, 1))},
	{name: "a damaged checksum is mended", packet: of(Pass, func(p, q *packet) bool {
		return byProto(TCP)(p, q) && q.transportChecksum().before != 0xffff
	}, func(_, q *packet, o *Outcome) {
		c := newCovered(q.l4+16, false, q.transportChecksum().parts)
		c.before = 0xffff
		c.restore(q.frame)
		copy(o.Frame, q.frame)
	})},
	{name: "padding is lost", packet: of(Send, func(p, q *packet) bool { return byProto(TCP)(p, q) && q.tail() < len(q.frame) },
		func(_, q *packet, o *Outcome) { o.Frame = o.Frame[:q.tail()] })},
	{name: "answers are not translated where they leave", packet: func(_ *packet, a Arrival, o *Outcome) {
		if a.Hook == Egress {
			o.Frame = a.Frame
		}
	}},
	{name: "later fragments are not translated", packet: func(p *packet, a Arrival, o *Outcome) {
		if p.form == later && o.Verdict == Pass {
			o.Frame = a.Frame
		}
	}},
	{name: "packets behind options are not translated", packet: func(p *packet, a Arrival, o *Outcome) {
		if p.form == whole && p.l4 != link+p.ipSize() && o.Verdict == Pass {
			o.Frame = a.Frame
		}
	}},
	{name: "errors are not translated", packet: func(p *packet, a Arrival, o *Outcome) {
		if p.form == message && a.Hook == Egress {
			o.Frame = a.Frame
		}
	}},
	{name: "inner ports of an error", packet: of(Pass, translatedError, func(_, q *packet, o *Outcome) {
		if _, ports, _ := new(Model).about(q); ports != 0 {
			o.Frame[ports]++
		}
	})},
	{name: "a reset does not acknowledge the SYN", packet: of(Send, func(p, q *packet) bool {
		return p.opens() && q.flags == RST|ACK
	}, xor(func(_, q *packet) int { return q.l4 + 11 }, 1))},
	{name: "a reset is answered", packet: func(p *packet, a Arrival, o *Outcome) {
		if o.Verdict == Drop && p.form == whole && p.flags&RST != 0 {
			o.Verdict, o.Frame = Send, a.Frame
		}
	}},
	{name: "port unreachable has another code", packet: of(Send, answeredBy(3, 1), xor(func(_, q *packet) int { return q.l4 + 1 }, 2))},
	{name: "time exceeded lacks the ports", packet: of(Send, answeredBy(11, 3), func(_, _ *packet, o *Outcome) { o.Frame = o.Frame[:len(o.Frame)-4] })},
	{name: "too big names another MTU", packet: of(Send, answeredBy(3, 2), xor(func(_, q *packet) int { return q.l4 + 7 }, 20))},
	{name: "an echo reply keeps the request's hops", packet: of(Send, func(p, _ *packet) bool { return p.form == message && p.isEcho() },
		func(p, q *packet, o *Outcome) { o.Frame[ttlAt(p, q)] = p.ttl - 1 })},
	{name: "a tunnel may be cut into fragments", packet: of(Send, func(p, q *packet) bool { return tunnelledOnly(p, q) && !q.v6 },
		xor(func(_, _ *packet) int { return link + 6 }, 0x40))},
	{name: "a tunnel without the class of traffic", packet: of(Send, func(p, q *packet) bool {
		return tunnelledOnly(p, q) && !q.v6 && p.frame[link+1] != 0
	}, xor(func(_, _ *packet) int { return link + 1 }, 0xff))},
	{name: "all flows of a tunnel have one label", packet: of(Send, func(p, q *packet) bool { return tunnelledOnly(p, q) && q.v6 },
		func(_, _ *packet, o *Outcome) { o.Frame[link+2], o.Frame[link+3] = 0, 0 })},
	{name: "a tunnel is not opened", packet: func(p *packet, a Arrival, o *Outcome) {
		if o.Verdict == Pass && p.form == other {
			o.Frame = a.Frame
		}
	}},
	{name: "spoofed sources are let pass", packet: letPass(func(p *packet) bool { return p.form == whole && spoofed(p.tuple.Src.Addr()) })},
	{name: "ClusterIPs are open to everybody", packet: letPass(func(p *packet) bool {
		return p.form == whole && netip.MustParsePrefix("10.96.0.0/16").Contains(p.tuple.Dst.Addr())
	})},
	{name: "source routes are dropped", packet: eat(func(p *packet) bool {
		return p.form == broken && !p.v6 && len(p.frame) > link+20 && p.frame[link] == 0x47 && p.frame[link+20] == 131
	})},
	{name: "VLAN tags are dropped", packet: eat(func(p *packet) bool { return len(p.frame) > 14 && p.frame[12] == 0x81 })},
	{name: "later fragments without their first are dropped", packet: eat(func(p *packet) bool { return p.form == later })},
	{name: "TCP in mid-flow is dropped", packet: eat(func(p *packet) bool { return p.tuple.Proto == TCP && p.flags&SYN == 0 })},
	{name: "a port that is not for masquerade", choice: func(_ Tuple, c *Choice) {
		if c.To.Src.Port() >= 50000 {
			c.To.Src = withPort(c.To.Src.Addr(), c.To.Src.Port()+400)
		}
	}},
	{name: "an endpoint of nobody", choice: func(_ Tuple, c *Choice) { c.To.Dst = withPort(c.To.Dst.Addr(), 8081) }},
	{name: "a flow that is not remembered", choice: func(_ Tuple, c *Choice) { c.Found = false }},
	{name: "too big is counted twice", counted: func(a Arrival, o Outcome) (Reason, bool) {
		p, q := parse(a.Frame), out(&o)
		return TooBig, o.Verdict == Send && changed(a, &o) && answeredBy(3, 2)(p, q)
	}},
	{name: "malformed packets are not counted", counted: func(a Arrival, _ Outcome) (Reason, bool) {
		return Malformed, a.Hook == Ingress && parse(a.Frame).form == broken
	}},
}

// within is how many packets a fault may need to be found.
const within = 20_000

// The comparison finds what it is made to find: each of these mistakes shows
// within a few thousand packets.
func TestAMistakeOfTheProgramsIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("asks the comparison, not the kernel")
	}
	l := newLab(t)
	start := rand.Uint64()
	for _, f := range faults {
		l.fault = f
		l.found(t, f.name, start)
	}
}

// misled are worlds that the programs were not told of.
var misled = []struct {
	name string
	lie  func(c *cluster) (truth func())
}{
	{"a Service of all endpoints is Local", func(c *cluster) func() {
		for _, p := range c.set("web").ports {
			p.Local = true
		}
		return func() {
			for _, p := range c.set("web").ports {
				p.Local = false
			}
		}
	}},
	{"a guarded Service is open", func(c *cluster) func() {
		for _, p := range c.set("guarded").ports {
			p.Sources = nil
		}
		return func() {
			for _, p := range c.set("guarded").ports {
				p.Sources = guard
			}
		}
	}},
	{"clients stay with their endpoints", func(c *cluster) func() {
		for _, p := range c.set("web").ports {
			p.Affinity = true
		}
		return func() {
			for _, p := range c.set("web").ports {
				p.Affinity = false
			}
		}
	}},
	{"a Service is not answered directly", func(c *cluster) func() {
		for _, p := range c.set("direct").ports {
			p.Direct = false
		}
		return func() {
			for _, p := range c.set("direct").ports {
				p.Direct = true
			}
		}
	}},
	{"mid-flow TCP is served", func(c *cluster) func() {
		for _, p := range c.set("web").ports {
			p.Maglev = true
		}
		return func() {
			for _, p := range c.set("web").ports {
				p.Maglev = false
			}
		}
	}},
	{"one port fewer to masquerade with", func(c *cluster) func() {
		c.LastPort--
		return func() { c.LastPort++ }
	}},
	{"the pods are outside", func(c *cluster) func() {
		inside := c.Inside
		c.Inside = nil
		return func() { c.Inside = inside }
	}},
	{"every path is a byte narrower", func(c *cluster) func() {
		for i := range c.Routes {
			c.Routes[i].MTU--
		}
		return func() {
			for i := range c.Routes {
				c.Routes[i].MTU++
			}
		}
	}},
	{"every neighbour is known", func(c *cluster) func() {
		before := append([]Route(nil), c.Routes...)
		for i := range c.Routes {
			c.Routes[i].Unresolved = false
		}
		return func() { copy(c.Routes, before) }
	}},
	{"XDP can send by no other device", func(c *cluster) func() {
		for _, d := range c.Devices {
			d.XDPTarget = false
		}
		return func() { c.Devices[0].XDPTarget, c.Devices[1].XDPTarget = true, true }
	}},
}

// Nor do the programs agree with a model that expects something else.
func TestAModelOfAnotherWorldIsFoundOut(t *testing.T) {
	if testing.Short() {
		t.Skip("asks the comparison, not the kernel")
	}
	l := newLab(t)
	start := rand.Uint64()
	for _, m := range misled {
		truth := m.lie(l.cluster)
		l.found(t, m.name, start)
		truth()
	}
}

// found expects a difference between programs and model.
func (l *lab) found(t *testing.T, name string, start uint64) {
	t.Helper()
	for n := range uint64(within / historyLength) {
		if events, err := l.draw(start + n); err != nil {
			t.Logf("%s: found by packet %d", name, n*historyLength+uint64(len(events)))
			return
		}
	}
	t.Errorf("%q: no difference within %d packets, first history -seed %d", name, within, start)
}
