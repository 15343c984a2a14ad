// SPDX-License-Identifier: Apache-2.0

package model

import "fmt"

// Hook is where a packet is seen.
type Hook int

// The hooks: XDP and Ingress see what comes in, Egress what leaves.
const (
	XDP Hook = iota
	Ingress
	Egress
)

func (h Hook) String() string { return [...]string{"xdp", "tc ingress", "tc egress"}[h] }

// Verdict is what becomes of a packet.
type Verdict int

// The verdicts.
const (
	Pass Verdict = iota // to the stack
	Drop
	Send // out by a device
	Back // an answer made of it: out where it came in
)

func (v Verdict) String() string { return [...]string{"pass", "drop", "send", "send back"}[v] }

// Reason is counted when a packet is not simply served.
type Reason int

// Reasons, by the numbers that they are counted under.
const (
	None            Reason = 0
	NoEndpoint      Reason = 1
	NoLocalEndpoint Reason = 2
	NoSuchPort      Reason = 3
	SourceRange     Reason = 5
	ClusterIPOut    Reason = 7
	MasqueradePorts Reason = 8
	NoRoute         Reason = 9
	Expired         Reason = 10
	TooBig          Reason = 11
	Fragment        Reason = 12
	Malformed       Reason = 13
	Spoofed         Reason = 14
	SCTPPort        Reason = 16
)

// Arrival is a packet at a hook of a device.
type Arrival struct {
	Hook   Hook
	Device *Device
	Frame  []byte // from the link header on
	// Segment: the packet is many that differ in their payload, of so many
	// bytes each but the last. 0: it is one. Not on XDP.
	Segment int
}

// Outcome is what becomes of a packet. Where a checksum may be zero, 0xffff is
// as good (RFC 1071); Either lists where such fields stand.
type Outcome struct {
	Verdict Verdict
	Device  *Device // of Send
	Frame   []byte
	Either  []int
	Reason  Reason
	Also    []Reason // as good
}

type action int

const (
	deliver  action = iota // request to an endpoint here
	answer                 // its answer, leaving
	forward                // request to an endpoint elsewhere
	comeback               // its answer, coming in
	tunnel                 // request in a tunnel to an endpoint that answers itself
)

func (a action) request() bool { return a != answer && a != comeback }

type state int

const (
	fresh       state = iota // one direction only
	answered                 // both
	closing                  // TCP: FIN seen of both, or of the only one
	reset                    // RST seen, and nothing since
	finSent                  // FIN seen of this direction
	finReceived              // of the other
)

// flow is one direction of a flow. It is established when it has proven itself:
// a first SYN then no longer changes it, but continues or replaces it.
type flow struct {
	to          Tuple
	action      action
	port        *ServicePort
	endpoint    *Endpoint
	version     int // of the service port when the endpoint was chosen
	state       state
	established bool
	freely      bool // the endpoint was one of several
}

type datagram struct {
	src, dst, proto any
	id              uint32
}

type client struct {
	addr any
	port *ServicePort
}

// Choice is what the programs made of a first packet: what they remember of its
// tuple, now or from before, and whether they dropped it or let it pass as it
// came.
type Choice struct {
	To      Tuple
	Found   bool
	Dropped bool
	Passed  bool
}

// Chosen tells the choice for the packet of a tuple that was tried last.
type Chosen func(Tuple) Choice

// Model is a node's memory.
type Model struct {
	World  *World
	Flows  map[Tuple]*flow
	Order  []Tuple // of Flows, as they came
	ports  map[datagram]Tuple
	bound  map[client]*Endpoint
	chosen Chosen
	fault  error
}

// New returns a node that has seen no packet.
func New(w *World, chosen Chosen) *Model {
	return &Model{World: w, Flows: map[Tuple]*flow{}, ports: map[datagram]Tuple{},
		bound: map[client]*Endpoint{}, chosen: chosen}
}

// Packet says what becomes of a packet. An error says that the programs have
// chosen what was not to choose.
func (m *Model) Packet(a Arrival) (Outcome, error) {
	m.fault = nil
	p := parse(append([]byte(nil), a.Frame...))
	var o Outcome
	if a.Hook == Egress {
		o = m.outgoing(p)
	} else {
		o = m.incoming(p, a)
	}
	if o.Frame == nil {
		o.Frame = a.Frame
	}
	return o, m.fault
}

func pass(r Reason) Outcome { return Outcome{Verdict: Pass, Reason: r} }
func drop(r Reason) Outcome { return Outcome{Verdict: Drop, Reason: r} }

func (m *Model) wrong(format string, args ...any) {
	if m.fault == nil {
		m.fault = fmt.Errorf(format, args...)
	}
}

// incoming is a packet that came in by an outward device.
func (m *Model) incoming(p *packet, a Arrival) Outcome {
	if a.Hook == Ingress && [6]byte(p.frame) != a.Device.MAC {
		return pass(None) // for another machine; XDP is before that is told apart
	}
	if inside := m.opened(p); inside != nil {
		o := m.arrived(inside, a)
		if o.Verdict == Pass && o.Frame == nil {
			o.Verdict = Drop // what was in a tunnel is not for the stack
		}
		return o
	}
	return m.arrived(p, a)
}

// arrived is a packet that came in, out of its tunnel if it was in one. What is
// passed as it is has no frame in its outcome.
func (m *Model) arrived(p *packet, a Arrival) Outcome {
	switch p.form {
	case broken:
		return a.passed(p, Malformed)
	case other:
		return pass(None)
	case message:
		return m.icmpIn(p, a)
	}
	ours := p.tunnelled() || m.World.ours(p.tuple.Dst.Addr())
	if !m.followFragments(p) {
		o := a.passed(p, Fragment)
		if !ours && o.Reason != None {
			// The programs may take an address for ours until they have looked closer.
			o.Reason, o.Also = None, []Reason{Fragment}
		}
		return o
	}
	if !ours && !m.mayAnswer(p) {
		return pass(None)
	}
	f := m.Flows[p.tuple]
	if f != nil && p.opens() && !f.established {
		f = nil // what opens is decided anew, and as before
	}
	if f != nil && (outlived(f, p) || m.unanswerable(f, p)) {
		m.forget(p.tuple)
		f = nil
	}
	if f != nil {
		if f.established || !m.leftToTC(f, a) {
			m.note(f, p)
		}
		return m.carryOut(p, f, a)
	}
	if ours {
		return m.firstPacket(p, a)
	}
	return pass(None)
}

// passed is a packet that is let pass for a reason. What XDP passes tc counts;
// but what was in a tunnel does not pass.
func (a Arrival) passed(p *packet, why Reason) Outcome {
	if a.Hook == XDP && !p.tunnelled() {
		why = None
	}
	return pass(why)
}

// leftToTC tells whether XDP passes a packet of a flow as it came.
func (m *Model) leftToTC(f *flow, a Arrival) bool {
	way := m.World.route(f.to.Dst.Addr())
	return a.Hook == XDP && (f.action == answer || f.action != deliver && way != nil && a.cannotSend(way))
}

// mayAnswer tells whether a packet may answer one that was masqueraded.
func (m *Model) mayAnswer(p *packet) bool {
	return p.tuple.Proto == SCTP || m.World.masqueradePort(p.tuple.Dst.Port())
}

// outgoing is a packet that leaves: the answer of an endpoint here, or nobody's.
func (m *Model) outgoing(p *packet) Outcome {
	if p.form <= broken {
		return pass(None)
	}
	if p.form == message {
		return m.icmpOut(p)
	}
	if !m.followFragments(p) {
		return pass(None)
	}
	f := m.Flows[p.tuple]
	if f == nil || f.action != answer {
		return pass(None)
	}
	if f.established && f.state > answered && p.flags&(SYN|ACK) == SYN|ACK {
		// Another connection of the same ports, to the endpoint's own address.
		m.forget(p.tuple)
		return pass(None)
	}
	m.note(f, p)
	return m.rewrite(p, f.to, false)
}

// followFragments gives a fragment the ports of its datagram; false when the
// first one has not been seen.
func (m *Model) followFragments(p *packet) bool {
	key := datagram{p.tuple.Src.Addr(), p.tuple.Dst.Addr(), p.tuple.Proto, p.id}
	switch p.form {
	case first:
		m.ports[key] = p.tuple
	case later:
		t, found := m.ports[key]
		if !found {
			return false
		}
		p.tuple = t
	}
	return true
}

// outlived tells whether a flow ends with this packet: TCP and SCTP when a new
// connection begins after the old one, or when its endpoint is gone; UDP as soon
// as its endpoint is gone.
func outlived(f *flow, p *packet) bool {
	switch {
	case !f.action.request():
		return false
	case p.tuple.Proto != UDP:
		return p.opens() && (f.state == closing || f.state == reset || f.endpoint.State == Dead)
	}
	return f.endpoint.State == Dead
}

// unanswerable tells whether answers to a datagram would find no entry: the flow
// then begins anew.
func (m *Model) unanswerable(f *flow, p *packet) bool {
	return p.tuple.Proto == UDP && !f.established && f.action.request() && f.action != tunnel && m.opposite(f) == nil
}

func (m *Model) opposite(f *flow) *flow { return m.Flows[f.to.turned()] }

// forget removes both directions of a flow. The other direction of one in a
// tunnel is another node's.
func (m *Model) forget(t Tuple) {
	if f := m.Flows[t]; f.action != tunnel {
		delete(m.Flows, f.to.turned())
	}
	delete(m.Flows, t)
}

// after is the state of an established flow after a packet. Data after a RST
// shows that that was not the endpoint's or the client's.
func (f *flow) after(p *packet) state {
	switch {
	case f.state == closing:
		return closing
	case p.flags&RST != 0:
		return reset
	case p.flags&FIN != 0 && (f.state == finReceived || f.action == tunnel):
		return closing
	case p.flags&FIN != 0:
		return finSent
	case f.state == reset:
		return answered
	}
	return f.state
}

// note remembers what a packet says about its flow. A flow is established by
// the packet after the first answer, for TCP by the client's; one that is
// answered elsewhere by the packet after the first.
func (m *Model) note(f *flow, p *packet) {
	ends := p.flags&(FIN|RST) != 0
	other := m.opposite(f)
	switch {
	case f.established:
		before := f.state
		f.state = f.after(p)
		if f.state == before || other == nil || !other.established || f.action == tunnel {
			return
		}
		other.state = f.state
		if f.state == finSent {
			other.state = finReceived
		}
	case f.action == tunnel && !ends:
		f.established, f.state = true, answered
	case f.state == fresh && !f.action.request():
		f.state = answered
		if other != nil {
			other.state = answered
		}
	case ends:
		f.state = closing
	case f.state == answered && other != nil && (f.action.request() || p.tuple.Proto != TCP):
		f.established, other.established = true, true
		f.state, other.state = answered, answered
	}
}
