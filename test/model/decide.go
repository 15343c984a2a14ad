// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"slices"
)

// spoofed sources are nobody whom an answer could reach.
func spoofed(a netip.Addr) bool {
	if a.Is4() {
		first := a.As4()[0]
		return a.IsUnspecified() || a.IsLoopback() || first >= 224
	}
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4In6()
}

// firstPacket decides what belongs to no flow, and is for an address of ours.
func (m *Model) firstPacket(p *packet, a Arrival) Outcome {
	t := p.tuple
	s := m.World.find(t.Dst, t.Proto)
	midFlow := t.Proto != UDP && !p.opens() && !p.tunnelled()
	inside := m.World.inside(t.Src.Addr()) && !p.tunnelled()
	switch {
	case s == nil && !p.tunnelled():
		return m.noSuchPort(p, midFlow, inside)
	case s == nil: // the address may be another node's
		s = m.World.services[frontend{anyAddress(t.Dst), t.Proto}]
		if s == nil {
			return drop(NoSuchPort)
		}
	}
	local := s.Port.Local && !inside && s.Kind != ClusterIP
	switch {
	case midFlow && !s.Port.Maglev:
		return pass(None) // another proxy may hold it
	case spoofed(t.Src.Addr()):
		return drop(Spoofed)
	case s.Kind == ClusterIP && !inside:
		return drop(ClusterIPOut)
	case s.Kind == LoadBalancer && !s.Port.admits(t.Src.Addr()):
		return drop(SourceRange)
	case p.tunnelled():
		return m.atTheEnd(p, s, a)
	case len(s.Port.offers(false)) == 0:
		return p.refuse(NoEndpoint)
	case len(s.Port.offers(local)) == 0:
		return drop(NoLocalEndpoint)
	}
	return m.serve(p, offer{
		port: s.Port, among: s.Port.offers(local), direct: s.Port.Direct && !inside && s.Kind != ClusterIP,
		sticky: s.Port.Affinity, midFlow: midFlow, leave: func(way *Route) bool { return a.cannotSend(way) },
	}, a)
}

// atTheEnd is what another node sent to the endpoint that it chose.
func (m *Model) atTheEnd(p *packet, s *Service, a Arrival) Outcome {
	e := s.Port.endAt(p.end)
	if e == nil || !s.Port.Direct {
		return drop(NoEndpoint)
	}
	return m.serve(p, offer{port: s.Port, among: []*Endpoint{e}, leave: func(*Route) bool { return false }}, a)
}

// offer is from what an endpoint is chosen.
type offer struct {
	port    *ServicePort
	among   []*Endpoint
	direct  bool              // endpoints elsewhere answer themselves
	sticky  bool              // the client stays with its endpoint
	midFlow bool              // an earlier packet was not seen here
	leave   func(*Route) bool // to tc what goes this way
}

// serve begins a flow and carries its first packet on.
func (m *Model) serve(p *packet, o offer, a Arrival) Outcome {
	f, why := m.choose(p.tuple, o)
	switch {
	case why == nil:
		return m.carryOut(p, f, a)
	case why[0] == notNow:
		return pass(None)
	}
	dropped := Outcome{Verdict: Drop, Reason: why[0], Also: why[1:]}
	if f != nil {
		if out := m.carryOut(p, f, a); out.Verdict == Drop {
			dropped.Also = append(dropped.Also, out.Reason)
		}
	}
	return dropped
}

// noSuchPort is for addresses of ours without a service at this port.
func (m *Model) noSuchPort(p *packet, midFlow, inside bool) Outcome {
	kind, service := m.World.addresses[p.tuple.Dst.Addr()]
	switch {
	case !service: // a node's own address
		return pass(None)
	case kind != ClusterIP && spoofed(p.tuple.Src.Addr()):
		return drop(Spoofed)
	case kind != ClusterIP:
		return p.refuse(NoSuchPort)
	case midFlow:
		return pass(None)
	case !inside:
		return drop(ClusterIPOut)
	}
	return p.refuse(NoSuchPort)
}

// notNow is no reason that is counted: the packet is left to others.
const notNow Reason = -1

func (s *ServicePort) admits(a netip.Addr) bool {
	return s.Sources == nil || slices.ContainsFunc(s.Sources, func(p netip.Prefix) bool { return p.Contains(a) })
}

// choose begins a flow to one of the endpoints, the one that the programs say
// they have chosen; or says why the packet is to be dropped. Both when the
// programs dropped what they have served before: they may have chosen another
// endpoint, which cannot have the flow, or the same, and dropped it on its way.
func (m *Model) choose(t Tuple, o offer) (*flow, []Reason) {
	who := client{t.Src.Addr(), o.port}
	among := o.among
	if o.sticky && slices.Contains(among, m.bound[who]) {
		among = []*Endpoint{m.bound[who]}
	}
	is := m.chosen(t)
	var why []Reason
	var can *flow
	left := false // perhaps
	for _, e := range among {
		f := &flow{port: o.port, endpoint: e, version: o.port.Version}
		switch r := m.unreachable(t, f, o); {
		case r == notNow:
			left = is.Passed
		case r != None:
			why = append(why, r)
		case is.Found && is.To.Dst == e.Addr:
			can = f
		}
	}
	if can != nil {
		can.to = is.To
		// What is remembered may be from before, and another endpoint was chosen now.
		before := m.Flows[t]
		remembered := before != nil && before.to == is.To
		if !remembered || !left && (why == nil || !is.Dropped) {
			m.judge(t, can, len(among) > 1 && !o.sticky)
			if o.sticky {
				m.bound[who] = can.endpoint
			}
			m.begin(t, can)
			return can, nil
		}
	}
	if left {
		return nil, []Reason{notNow}
	}
	if why == nil || is.Found && m.Flows[t] == nil {
		why = append(why, None)
		m.wrong("%v became %+v, which is none of %d endpoints on offer", t, is, len(among))
	}
	return can, why
}

// unreachable says why an endpoint cannot have this flow; it sets the action
// and what is known of the rewritten tuple.
func (m *Model) unreachable(t Tuple, f *flow, o offer) Reason {
	own := f.endpoint.Addr.Addr() == t.Src.Addr()
	near := f.endpoint.Here && !own
	f.to = Tuple{Src: t.Src, Dst: f.endpoint.Addr, Proto: t.Proto}
	switch {
	case near && !m.World.MasqueradeAll:
		f.action = deliver
	case o.direct && !near && !own && !m.World.MasqueradeAll:
		f.action = tunnel
	case o.midFlow:
		return notNow // the endpoint would see another client than before
	default:
		f.action = forward
	}
	way := m.World.route(f.endpoint.Addr.Addr())
	if t.Src.Addr().Is6() && t.Src.Addr().IsLinkLocalUnicast() {
		way = nil // what is link-local is not passed on (RFC 4291, 2.5.6)
	}
	if !f.endpoint.Here && !own && way != nil && way.Device.Inward && !m.World.MasqueradeAll {
		f.action = deliver // here all the same
	}
	if f.action == tunnel && f.endpoint.Nodeless && way != nil {
		if o.midFlow {
			return notNow
		}
		f.action = forward // who is there may open no tunnels
	}
	switch {
	case f.action == deliver:
	case way != nil:
		f.to.Src = netip.AddrPortFrom(way.Masquerade, t.Src.Port())
	case near:
		f.action = deliver // the node itself is no way to go
	default:
		return NoRoute
	}
	if f.action != deliver && o.leave(way) {
		return notNow
	}
	if t.Proto != SCTP || f.action == tunnel {
		return None
	}
	if f.endpoint.Addr.Port() != t.Dst.Port() {
		return SCTPPort
	}
	if m.taken(f.to, t) {
		return MasqueradePorts // SCTP's checksum cannot follow another port
	}
	return None
}

// taken tells whether answers to a rewritten tuple would be another flow's.
func (m *Model) taken(to, t Tuple) bool {
	f := m.Flows[to.turned()]
	return f != nil && f.to != t.turned()
}

// judge holds the chosen tuple against what it may be. What was chosen freely
// is chosen again as long as the choice is the same.
func (m *Model) judge(t Tuple, f *flow, freely bool) {
	want := Tuple{Src: t.Src, Dst: f.endpoint.Addr, Proto: t.Proto}
	if f.action != deliver {
		want.Src = netip.AddrPortFrom(m.World.route(want.Dst.Addr()).Masquerade, t.Src.Port())
	}
	free := f.action == tunnel || t.Proto == SCTP || f.action == deliver && !m.taken(want, t)
	if !free {
		if port := f.to.Src.Port(); m.World.masqueradePort(port) {
			want.Src = netip.AddrPortFrom(want.Src.Addr(), port)
		} else {
			m.wrong("%v has source port %d, which is not among those to masquerade with", t, port)
		}
	}
	if f.to != want {
		m.wrong("%v became %v, want %v", t, f.to, want)
	}
	if f.action != tunnel && m.taken(f.to, t) {
		m.wrong("%v became %v, whose answers are another flow's", t, f.to)
	}
	before := m.Flows[t]
	f.freely = freely
	if freely && before != nil && before.freely && before.port == f.port && before.version == f.version && before.endpoint != f.endpoint {
		m.wrong("%v went to %v, after %v", t, f.endpoint.Addr, before.endpoint.Addr)
	}
}

// begin writes down both directions of a flow, or one where there is no other.
func (m *Model) begin(t Tuple, f *flow) {
	m.put(t, f)
	back := *f
	back.to = t.turned()
	switch f.action {
	case deliver:
		back.action = answer
	case forward:
		back.action = comeback
	default:
		return
	}
	if old := m.Flows[f.to.turned()]; old != nil && old.established {
		return // it leads to the same
	}
	m.put(f.to.turned(), &back)
}

func (m *Model) put(t Tuple, f *flow) {
	if m.Flows[t] == nil {
		m.Order = append(m.Order, t)
	}
	m.Flows[t] = f
}
