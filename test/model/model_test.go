// SPDX-License-Identifier: Apache-2.0

package model

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	tables "portolan.dev/portolan/maps"
)

var (
	packets = flag.Int("packets", 100_000, "random packets to try")
	seed    = flag.Uint64("seed", 0, "of the first history; 0: the fixed one and a random one")
)

// historyLength is how many packets come before everything is forgotten: enough
// for flows to meet, and so few that a failure can be reduced.
const historyLength = 1000

// Random packets, whole and broken, of many flows at once, fare with the
// programs exactly as the model says: the same verdict, the same bytes, the same
// reason counted.
func TestThePacketProgramsDoWhatTheModelSays(t *testing.T) {
	newLab(t).agree(t, *packets*9/10)
}

// The same when endpoints are to see this node as the source of everything.
func TestThePacketProgramsDoWhatTheModelSaysWithMasqueradeForAll(t *testing.T) {
	l := newLab(t)
	l.cluster.MasqueradeAll = true
	if err := l.load(l.set); err != nil {
		t.Fatal(err)
	}
	l.agree(t, *packets/10)
}

// agree tries so many packets, in histories of which one half is the same each
// time.
func (l *lab) agree(t *testing.T, count int) {
	t.Helper()
	halves := []uint64{1, uint64(rand.Uint32())}
	if *seed != 0 {
		halves = []uint64{*seed}
	}
	tally := map[string]int{}
	l.saw = func(a Arrival, o Outcome) {
		rewritten := ""
		if o.Verdict != Drop && !bytes.Equal(o.Frame, a.Frame) {
			rewritten = " rewritten"
		}
		tally[fmt.Sprintf("%s %s%s (reason %d)", a.Hook, o.Verdict, rewritten, o.Reason)]++
	}
	for _, start := range halves {
		t.Logf("first history: -seed %d", start)
		for n := range uint64(max(1, count/len(halves)/historyLength)) {
			if events, err := l.draw(start + n); err != nil {
				l.saw = nil
				t.Fatalf("history -seed %d: %v\n%s", start+n, err, l.reduce(start+n, events))
			}
		}
	}
	for _, what := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%7d %s", tally[what], what)
	}
}

// draw draws a history and plays it, until something is different.
func (l *lab) draw(seed uint64) ([]event, error) {
	var events []event
	left := historyLength
	src := &source{Rand: rand.New(rand.NewPCG(seed, 1)), cluster: l.cluster}
	err := l.play(seed, func(m *Model) (event, bool) {
		src.model = m
		if left == 0 {
			return event{}, false
		}
		e := src.next()
		if !e.isChange() {
			left--
		}
		events = append(events, e)
		return e, true
	})
	return events, err
}

// again plays events.
func (l *lab) again(seed uint64, events []event) error {
	i := 0
	return l.play(seed, func(*Model) (event, bool) {
		if i == len(events) {
			return event{}, false
		}
		i++
		return events[i-1], true
	})
}

// reduce leaves out what is not needed for a failure, and lists the rest.
func (l *lab) reduce(seed uint64, events []event) string {
	for size := len(events) / 2; size > 0; size /= 2 {
		for at := 0; at < len(events); {
			without := slices.Concat(events[:at], events[min(at+size, len(events)):])
			if l.again(seed, without) != nil {
				events = without
			} else {
				at += size
			}
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "reduced to %d events: %v\n", len(events), l.again(seed, events))
	for _, e := range events {
		if e.isChange() {
			fmt.Fprintf(&out, "endpoint %d of %s becomes %d\n", e.endpoint, l.cluster.sets[e.set].spec.name, e.state)
		} else {
			p := parse(e.Frame)
			fmt.Fprintf(&out, "%s out of device %d: %v -> %v proto %d form %d flags %d ttl %d\n  %x\n", e.Hook, e.Device.Index,
				p.tuple.Src, p.tuple.Dst, p.tuple.Proto, p.form, p.flags, p.ttl, e.Frame)
		}
	}
	return out.String()
}

// play runs events from an empty memory, on the programs and on the model.
func (l *lab) play(seed uint64, next func(*Model) (event, bool)) error {
	var revived []*set
	for _, s := range l.cluster.sets {
		if s.revive() {
			revived = append(revived, s)
		}
	}
	if revived != nil {
		if err := errors.Join(l.apply(revived...), l.reconciler.RecycleNow()); err != nil {
			return err
		}
	}
	if err := l.wipe(); err != nil {
		return err
	}
	l.set.WireConfig.At(0).HashSeed = uint32(seed)
	m := New(l.cluster.World, l.chosen)
	var err error
	if l.before, err = l.reasons(); err != nil {
		return err
	}
	for {
		e, more := next(m)
		if !more {
			break
		}
		if e.isChange() {
			s := l.cluster.sets[e.set]
			s.demote(e.endpoint, e.state)
			if err := l.apply(s); err != nil {
				return err
			}
			continue
		}
		o, err := l.step(m, e.Arrival)
		if err != nil {
			return err
		}
		if l.saw != nil {
			l.saw(e.Arrival, o)
		}
	}
	return nil
}

// reasons reads the counters, summed up over CPUs.
func (l *lab) reasons() (counts [SCTPPort + 1]int, err error) {
	var at ebpf.MapBatchCursor
	keys := make([]uint32, len(counts))
	values := make([]uint64, len(counts)*l.cpus)
	n, err := l.set.Map(tables.Reasons).BatchLookup(&at, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return counts, fmt.Errorf("read reasons: %w", err)
	}
	for i := range n * l.cpus {
		counts[keys[i/l.cpus]] += int(values[i])
	}
	return counts, nil
}

// step runs one packet on both.
func (l *lab) step(m *Model, a Arrival) (Outcome, error) {
	got, err := l.run(a)
	if err != nil {
		return got, fmt.Errorf("run %x: %w", a.Frame, err)
	}
	if l.fault.packet != nil {
		l.fault.packet(parse(a.Frame), a, &got)
	}
	want, err := m.Packet(a)
	if err == nil {
		err = compare(a, got, want)
	}
	if err == nil {
		if l.fault.counted != nil {
			if r, more := l.fault.counted(a, got); more {
				l.before[r]--
			}
		}
		err = l.counted(want.Reason, want.Also)
	}
	if err != nil {
		return want, fmt.Errorf("%s of device %d: %w\nin    %x\ngot   %s %x\nmodel %s (%d) %x",
			a.Hook, a.Device.Index, err, a.Frame, got.Verdict, got.Frame, want.Verdict, want.Reason, want.Frame)
	}
	return want, nil
}

// counted tells whether a reason, and nothing else, was counted since the last
// packet.
func (l *lab) counted(why Reason, also []Reason) error {
	now, err := l.reasons()
	if err != nil {
		return err
	}
	before := l.before
	l.before = now
	for _, r := range also {
		if now[r] != before[r] {
			why = r
		}
	}
	for r := range now {
		want := 0
		if r == int(why) && why != None {
			want = 1
		}
		if now[r]-before[r] != want {
			return fmt.Errorf("reason %d was counted %d times, want %d", r, now[r]-before[r], want)
		}
	}
	return nil
}

// compare tells what is different. A test run does not say by which device a
// packet is redirected, only whether it goes back; the link header does.
func compare(a Arrival, got, want Outcome) error {
	if want.Verdict == Back {
		want.Verdict, want.Device = Send, a.Device
	}
	switch {
	case got.Verdict != want.Verdict:
		return errors.New("another verdict")
	case want.Verdict == Drop:
		return nil
	case want.Verdict == Send && a.Hook == XDP && (got.Device != nil) != (want.Device == a.Device):
		return errors.New("sent by another device")
	}
	for _, at := range want.Either {
		if len(got.Frame) > at+1 && got.Frame[at] == 0 && got.Frame[at+1] == 0 && want.Frame[at] == 255 && want.Frame[at+1] == 255 ||
			len(got.Frame) > at+1 && want.Frame[at] == 0 && want.Frame[at+1] == 0 && got.Frame[at] == 255 && got.Frame[at+1] == 255 {
			copy(want.Frame[at:], got.Frame[at:at+2])
		}
	}
	if !bytes.Equal(got.Frame, want.Frame) {
		return errors.New("other bytes")
	}
	return nil
}
