// SPDX-License-Identifier: Apache-2.0

// Needs root and Linux 6.1.

package model

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/test/world"
)

// What the programs write down, which verdicts alone do not show.

// arrive gives a packet to the programs as a device with both hooks does: what
// XDP passes goes on to tc. It tells whether XDP passed it as it came.
func (l *lab) arrive(t *testing.T, device int, ip []byte) bool {
	t.Helper()
	d := l.cluster.Devices[device]
	a := Arrival{Hook: XDP, Device: d, Frame: onLink(d.MAC, ip)}
	o := l.must(t, a)
	if o.Verdict != Pass {
		return false
	}
	left := l.passed
	l.must(t, Arrival{Hook: Ingress, Device: d, Frame: o.Frame})
	return left
}

func (l *lab) must(t *testing.T, a Arrival) Outcome {
	t.Helper()
	o, err := l.run(a)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// established counts the entries of IPv4 that no newcomer can push out.
func (l *lab) established(t *testing.T) int {
	t.Helper()
	return len(world.Must(l.set.Flows4.Entries())(t))
}

// forwarded sends first packets to "web" until one is masqueraded, and returns
// what became of it.
func (l *lab) forwarded(t *testing.T, proto uint8, client string) (from, to Tuple) {
	t.Helper()
	return l.until(t, proto, client, web4)
}

// until sends first packets of one port after the other until one goes to an
// endpoint elsewhere.
func (l *lab) until(t *testing.T, proto uint8, client, vip string) (from, to Tuple) {
	t.Helper()
	for port := uint16(2000); port < 2100; port++ {
		from = Tuple{withPort(netip.MustParseAddr(client), port), netip.MustParseAddrPort(vip + ":80"), proto}
		l.arrive(t, 0, request(from).packet())
		to, found := l.remembered(from)
		if found && to.Dst.Addr() == podAddr("there1", false) {
			return from, to
		}
	}
	t.Fatal("no client was sent to an endpoint elsewhere")
	return from, to
}

// The neighbours of "silent" and of clients in 198.51.102.0/24 are not known:
// XDP leaves what goes there to tc, and tc must not take it for the next packet
// of its flow.
func TestOnePacketIsNotTwoToXDPAndTC(t *testing.T) {
	l := newLab(t)
	left := 0
	for i := range 100 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 1025)
		if l.arrive(t, 0, request(Tuple{from, netip.MustParseAddrPort("203.0.2.20:80"), UDP}).packet()) {
			left++
		}
	}
	if n := l.established(t); n != 0 || left == 0 {
		t.Errorf("a datagram each of 100 clients: %d flows are established; XDP left %d packets to tc", n, left)
	}

	_, to := l.forwarded(t, UDP, "198.51.102.1")
	if !l.arrive(t, 1, request(to.turned()).packet()) {
		t.Error("XDP sent the answer to an unknown neighbour")
	}
	if n := l.established(t); n != 0 {
		t.Errorf("a question and its answer: %d entries are established", n)
	}
}

// pushOut does to a newcomer what others that share its bucket do.
func (l *lab) pushOut(t *testing.T, of Tuple) {
	t.Helper()
	index := bucket(words(flowKey4(of)))
	if err := l.set.Map(maps.Newcomers4).Update(index, bpf.LbNewcomers4{}, ebpf.UpdateExist|ebpf.UpdateLock); err != nil {
		t.Fatal(err)
	}
}

// The entries of a flow stand in different buckets, and go one by one.
func TestTheNextDatagramBringsBackWhatWasPushedOut(t *testing.T) {
	l := newLab(t)
	for _, answered := range []bool{false, true} {
		from, to := l.forwarded(t, UDP, client4)
		if answered {
			l.arrive(t, 1, request(to.turned()).packet())
		}
		l.pushOut(t, to.turned())
		l.arrive(t, 0, request(from).packet())
		if back, found := l.remembered(to.turned()); !found || back != from.turned() {
			t.Errorf("answered %v: answers become %v (found: %v), want %v", answered, back, found, from.turned())
		}
		if err := l.wipe(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASYNThatXDPLeavesToTCIsCountedOnce(t *testing.T) {
	l := newLab(t)
	for port := uint16(2000); port < 2100; port++ {
		zero := uint32(0)
		if err := l.set.Map("pressure").Update(zero, make([]bpf.LbPressure, l.cpus), ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
		from := netip.AddrPortFrom(netip.MustParseAddr(client4), port)
		left := l.arrive(t, 0, request(Tuple{from, netip.MustParseAddrPort(web4 + ":80"), TCP}).packet())
		var counts []bpf.LbPressure
		if err := l.set.Map("pressure").Lookup(zero, &counts); err != nil {
			t.Fatal(err)
		}
		sum := uint32(0)
		for _, c := range counts {
			sum += c.Count
		}
		if sum != 1 {
			t.Fatalf("it was counted %d times", sum)
		}
		if left {
			return
		}
	}
	t.Error("XDP left no packet to tc")
}

// flood makes the programs take every new flow for one too many.
func (l *lab) flood(t *testing.T) {
	t.Helper()
	l.rate = 0
	if err := l.load(l.set); err != nil {
		t.Fatal(err)
	}
}

// Of "maglev" and "direct-maglev" packets in mid-flow are served, too.
func TestAFloodOfAnyKindWritesNothing(t *testing.T) {
	l := newLab(t)
	l.flood(t)
	for _, vip := range []string{"203.0.2.22", "203.0.2.23", "203.0.2.11", "203.0.2.20", web4} {
		for _, p := range []struct{ proto, flags uint8 }{{TCP, ACK}, {UDP, 0}, {TCP, SYN}, {TCP, ACK}} {
			for port := uint16(2000); port < 2020; port++ {
				from := Tuple{withPort(netip.MustParseAddr(client4), port), netip.MustParseAddrPort(vip + ":80"), p.proto}
				s := request(from)
				s.flags = p.flags
				l.arrive(t, 0, s.packet())
				if to, found := l.remembered(from); found {
					t.Fatalf("%v with flags %d is remembered, to become %v", from, p.flags, to)
				}
			}
		}
	}
	if bound := world.Must(l.set.Affinity.Entries())(t); len(bound) != 0 {
		t.Errorf("%d clients are bound to endpoints", len(bound))
	}
}

// endpoint is where a SYN of a client, bound by affinity, is sent by tc.
func (l *lab) endpoint(t *testing.T, port uint16) netip.Addr {
	t.Helper()
	from := Tuple{withPort(netip.MustParseAddr(client4), port), netip.MustParseAddrPort("203.0.2.11:80"), TCP}
	d := l.cluster.Devices[0]
	return parse(l.must(t, Arrival{Hook: Ingress, Device: d, Frame: onLink(d.MAC, request(from).packet())}).Frame).tuple.Dst.Addr()
}

func TestABoundClientIsBoundWhateverTheOthersDo(t *testing.T) {
	l := newLab(t)
	first := l.endpoint(t, 2000)
	// Another CPU has renewed the binding since this one read its clock.
	for port := uint16(2001); port < 2020; port++ {
		for key, value := range world.Must(l.set.Affinity.Entries())(t) {
			value.LastSeen += 1e9
			if err := l.set.Affinity.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
		if e := l.endpoint(t, port); e != first {
			t.Fatalf("renewed elsewhere: went to %s, after %s", e, first)
		}
	}
	l.flood(t)
	for port := uint16(2020); port < 2040; port++ {
		if e := l.endpoint(t, port); e != first {
			t.Fatalf("under a flood: went to %s, after %s", e, first)
		}
	}
}

// newcomer changes a newcomer of IPv4.
func (l *lab) newcomer(t *testing.T, of Tuple, change func(*bpf.LbFlow)) {
	t.Helper()
	key := flowKey4(of)
	index := bucket(words(key))
	var b bpf.LbNewcomers4
	table := l.set.Map(maps.Newcomers4)
	if err := table.Lookup(index, &b); err != nil {
		t.Fatal(err)
	}
	for i := range b.Way {
		if b.Way[i].Key == key {
			change(&b.Way[i].Flow.Flow)
		}
	}
	if err := table.Update(index, b, ebpf.UpdateExist|ebpf.UpdateLock); err != nil {
		t.Fatal(err)
	}
}

// flow reads an established flow of IPv4.
func (l *lab) flow(t *testing.T, of Tuple) bpf.LbFlow {
	t.Helper()
	f, found, err := l.set.Flows4.Get(flowKey4(of))
	if err != nil || !found {
		t.Fatalf("flow %v: found %v, %v", of, found, err)
	}
	return f.Flow
}

// A flow that was silent for long before it proved itself has not been silent
// since.
func TestAFlowIsAsYoungAsItsLastPacketWhenItIsEstablished(t *testing.T) {
	l := newLab(t)
	for _, alone := range []bool{false, true} {
		from, to := l.forwarded(t, UDP, client4)
		if alone {
			from, _ = l.tunnelled(t)
		} else {
			l.arrive(t, 1, request(to.turned()).packet())
		}
		var seen uint32
		older := func(f *bpf.LbFlow) { seen = f.LastSeen; f.LastSeen -= 100 }
		l.newcomer(t, from, older)
		directions := []Tuple{from}
		if !alone {
			l.newcomer(t, to.turned(), older)
			directions = append(directions, to.turned())
		}
		l.arrive(t, 0, request(from).packet())
		for _, of := range directions {
			if f := l.flow(t, of); int32(f.LastSeen-seen) < 0 {
				t.Errorf("%v, tunnelled %v: established with its last packet %d units ago", of, alone, seen-f.LastSeen)
			}
		}
	}
}

// tunnelled sends a first datagram of one client after the other to "direct",
// until one is put into a tunnel.
func (l *lab) tunnelled(t *testing.T) (from, to Tuple) {
	t.Helper()
	return l.until(t, UDP, client4, "203.0.2.20")
}

// opened is a TCP connection to an endpoint elsewhere, which is established.
func (l *lab) opened(t *testing.T, vip string) (from, answer Tuple) {
	t.Helper()
	from, to := l.until(t, TCP, client4, vip)
	l.segment(t, to.turned(), SYN|ACK)
	l.segment(t, from, ACK)
	return from, to.turned()
}

// segment is one of a connection, in by the device that leads to its sender.
func (l *lab) segment(t *testing.T, of Tuple, flags byte) {
	t.Helper()
	device := 0
	if of.Src.Port() == 8080 {
		device = 1
	}
	s := request(of)
	s.flags = flags
	l.arrive(t, device, s.packet())
}

// swept tells whether a sweep so many seconds from now removes a flow.
func (l *lab) swept(t *testing.T, of Tuple, seconds uint32) bool {
	t.Helper()
	spec := world.Must(bpf.LoadSweep())(t)
	replacements := map[string]*ebpf.Map{maps.Flows4: l.set.Map(maps.Flows4), maps.Flows6: l.set.Map(maps.Flows6)}
	c := world.Must(ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements}))(t)
	defer c.Close()
	report := bpf.LbSweepReport{Now: uint64(l.flow(t, of).LastSeen) + uint64(seconds)*1e9>>30}
	world.Must(c.Programs["portolan_sweep"].Run(&ebpf.RunOptions{Context: &report}))(t)
	_, found, err := l.set.Flows4.Get(flowKey4(of))
	if err != nil {
		t.Fatal(err)
	}
	return !found
}

func TestAConnectionLivesUntilBothSidesClosedIt(t *testing.T) {
	type segment struct {
		answer bool
		flags  byte
	}
	l := newLab(t)
	const minutes, hour, hours = 3 * 60, 60*60 + 60, 6*60*60 + 60
	for _, c := range []struct {
		name     string
		vip      string
		segments []segment
		stays    uint32 // seconds without a packet
		goes     uint32
	}{
		{"open", web4, nil, hour, hours},
		{"closed by the client", web4, []segment{{false, FIN | ACK}}, minutes, hour},
		{"closed by the client, whose FIN comes twice", web4, []segment{{false, FIN | ACK}, {false, FIN | ACK}}, minutes, hour},
		{"closed by the client, and the endpoint goes on", web4, []segment{{false, FIN | ACK}, {true, ACK}}, minutes, hour},
		{"closed by the endpoint", web4, []segment{{true, FIN | ACK}, {false, ACK}}, minutes, hour},
		{"closed by both", web4, []segment{{true, FIN | ACK}, {false, FIN | ACK}, {true, ACK}}, 30, minutes},
		{"reset", web4, []segment{{true, RST}}, 30, minutes},
		{"reset by somebody else", web4, []segment{{true, RST}, {false, ACK}}, hour, hours},
		{"closed by both and reset", web4, []segment{{true, FIN | ACK}, {false, FIN | ACK}, {true, RST}, {false, ACK}}, 30, minutes},
		{"in a tunnel, of which answers go another way", "203.0.2.20", []segment{{false, FIN | ACK}}, 30, minutes},
	} {
		from, answer := l.opened(t, c.vip)
		for _, s := range c.segments {
			of := from
			if s.answer {
				of = answer
			}
			l.segment(t, of, s.flags)
		}
		if l.swept(t, from, c.stays) {
			t.Errorf("%s: gone after %d seconds", c.name, c.stays)
		} else if !l.swept(t, from, c.goes) {
			t.Errorf("%s: still there after %d seconds", c.name, c.goes)
		}
		if err := l.wipe(); err != nil {
			t.Fatal(err)
		}
	}
}
