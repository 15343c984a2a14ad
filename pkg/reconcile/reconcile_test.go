// SPDX-License-Identifier: Apache-2.0

// Needs root: real tables, no programs.

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// bench is a compiler and a reconciler on real tables.
type bench struct {
	objects  compile.Update // all that exists
	compiler *compile.Compiler
	r        *Reconciler
	attached int
}

func requireRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF maps")
	}
}

func newBench(t rapidT, adopted *maps.Set, objects compile.Update) *bench {
	b := &bench{objects: objects, compiler: compile.New(compile.Config{Node: service.Node{Name: "here", Zone: "a"}, MaglevSize: 251})}
	r, err := New(Config{
		Adopted: adopted,
		Attach:  func(*maps.Set) error { b.attached++; return nil },
		Wait:    func() error { return nil },
		Node:    testNode,
	})
	if err != nil {
		t.Fatalf("new reconciler: %v", err)
	}
	b.r = r
	b.apply(t, objects)
	return b
}

var testNode = Node{
	NodePortAddrs: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): false, netip.MustParseAddr("127.0.0.1"): true, netip.MustParseAddr("::1"): true},
	ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
}

// rapidT is what testing.T and rapid.T have in common.
type rapidT interface {
	Fatalf(format string, args ...any)
	Helper()
}

func (b *bench) apply(t rapidT, u compile.Update) {
	t.Helper()
	if err := b.r.Apply(b.compiler.Apply(u)); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// recycle is what Recycle does after a grace period.
func (b *bench) recycle() {
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	b.r.giveBack(b.r.retired)
	b.r.retired = nil
}

// tables reads back what the tables say, without what is history: ids,
// generations, places and the order within a part of a set.
func tables(t rapidT, set *maps.Set) string {
	t.Helper()
	resolved, err := set.Resolve()
	if err != nil {
		t.Fatalf("resolve: %v", err)
	}
	if len(resolved.Damage) > 0 {
		t.Fatalf("tables contradict themselves: %v", resolved.Damage)
	}
	var lines []string
	for _, f := range resolved.Frontends {
		lines = append(lines, fmt.Sprintf("%s/%d %v affinity=%d sources=%v internal=%s external=%s",
			f.Addr, f.Protocol, f.Name, f.Affinity, f.Sources, rangeLine(set, &f.Internal), rangeLine(set, &f.External)))
	}
	for addr, owner := range resolved.Owners {
		lines = append(lines, fmt.Sprintf("owner %s %x", addr, owner))
	}
	for addr, hostOnly := range resolved.NodeAddrs {
		lines = append(lines, fmt.Sprintf("node %s %v", addr, hostOnly))
	}
	for _, b := range resolved.Unnamed {
		lines = append(lines, fmt.Sprintf("unnamed %s %x", b.Addr, b.Flags))
	}
	ends, err := set.TunnelEnds.Entries()
	if err != nil {
		t.Fatalf("read tunnel ends: %v", err)
	}
	for key, id := range ends {
		addr := maps.FromAddr16(key.Addr).Unmap()
		if key.ServicePort == 0 {
			lines = append(lines, fmt.Sprintf("end %s of any", addr))
			continue
		}
		name, ok, err := set.ServiceNames.Get(key.ServicePort)
		if err != nil || !ok {
			t.Fatalf("end %s of service port %d, which has no name: %v", addr, key.ServicePort, err)
		}
		lines = append(lines, fmt.Sprintf("end %s of %s/%s %s %d is there: %v", addr, maps.String(name.Namespace[:]), maps.String(name.Name[:]), maps.String(name.Port[:]), name.Proto, endIsThere(set, addr, id, key.ServicePort)))
	}
	names, err := set.ServiceNames.Entries()
	if err != nil {
		t.Fatalf("read names: %v", err)
	}
	for _, v := range names {
		lines = append(lines, fmt.Sprintf("name %s/%s %s %d %d", maps.String(v.Namespace[:]), maps.String(v.Name[:]), maps.String(v.Port[:]), v.Proto, v.Family))
	}
	for i := range set.VIPFilter.Len() {
		if word := set.VIPFilter.Load(i); word != 0 {
			lines = append(lines, fmt.Sprintf("filter %d %x", i, word))
		}
	}
	config := set.NodeConfig.Load(0)
	lines = append(lines, fmt.Sprintf("nodeports %d-%d cidrs %v", config.NodeportMin, config.NodeportMax, config.Cidrs[config.ActiveCidrs]))
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n")
}

func rangeLine(set *maps.Set, r *maps.Range) string {
	if r.Flags&maps.RangeMaglev != 0 {
		return fmt.Sprintf("%x%v", r.Flags, maglevTable(set, r))
	}
	var here, there []string
	for i, b := range r.Backends {
		text := fmt.Sprintf("%s:%x", b.Addr, b.Flags)
		if b.Flags&maps.BackendOnNode != 0 {
			if len(there) > 0 {
				return fmt.Sprintf("endpoint %d of this node stands behind others", i)
			}
			here = append(here, text)
		} else {
			there = append(there, text)
		}
	}
	slices.Sort(here)
	slices.Sort(there)
	return fmt.Sprintf("%x%v%v", r.Flags, here, there)
}

// endIsThere tells whether a backend is the one that the end of a tunnel names.
func endIsThere(set *maps.Set, addr netip.Addr, id, port uint32) bool {
	if addr.Is4() {
		b := set.Backends4.Load(id)
		return maps.FromAddr4(b.Addr) == addr && b.ServicePort == port && b.Flags&maps.BackendOnNode != 0 && b.Flags&maps.BackendStateMask != 0
	}
	b := set.Backends6.Load(id)
	return maps.FromAddr16(b.Addr) == addr && b.ServicePort == port && b.Flags&maps.BackendOnNode != 0 && b.Flags&maps.BackendStateMask != 0
}

// maglevTable is every slot of a table, in order.
func maglevTable(set *maps.Set, r *maps.Range) []string {
	byID := map[uint32]string{}
	for _, b := range r.Backends {
		byID[b.ID] = fmt.Sprintf("%s:%x", b.Addr, b.Flags)
	}
	out := make([]string, 0, r.Count)
	for i := range r.Count {
		out = append(out, byID[set.Slots.Load(r.Base+i).Backend])
	}
	return out
}

// leaks compares the allocators with what is in use.
func (b *bench) leaks() string {
	r := b.r
	var spansUsed, ids4, ids6, ports uint32
	for _, p := range r.ports {
		if p.id == 0 {
			continue
		}
		ports++
		if p.cluster.count > 0 {
			spansUsed += 1 << class(p.cluster.count)
		}
		if !p.shared && p.local.count > 0 {
			spansUsed += 1 << class(p.local.count)
		}
		for _, word := range p.words {
			if word == 0 {
				continue
			}
			if p.compiled.Family == service.IPv4 {
				ids4++
			} else {
				ids6++
			}
		}
	}
	got := fmt.Sprint(r.portIDs.used, r.frontendIDs.used, r.backends4.used, r.backends6.used, r.slots.used)
	want := fmt.Sprint(ports, len(r.frontends), ids4, ids6, spansUsed)
	if got != want {
		return fmt.Sprintf("ports, frontends, backends4, backends6, slots handed out: %s, in use: %s", got, want)
	}
	for _, a := range []struct {
		ids   *ids
		first uint32
	}{{&r.portIDs, 1}, {&r.frontendIDs, 0}, {&r.backends4, 0}, {&r.backends6, 0}} {
		if a.ids.used+uint32(len(a.ids.free))+a.first != a.ids.next {
			return fmt.Sprintf("ids: %d used, %d free, %d begun", a.ids.used, len(a.ids.free), a.ids.next)
		}
	}
	free := uint32(0)
	for c, list := range r.slots.free {
		free += uint32(len(list)) << c
	}
	if free+r.slots.used != r.slots.next {
		return fmt.Sprintf("slots: %d used, %d free, %d begun", r.slots.used, free, r.slots.next)
	}
	if n := r.set.Frontends4.ReleaseAll() + r.set.Frontends6.ReleaseAll(); n > 0 {
		return fmt.Sprintf("frontends: %d places wait that nobody releases", n)
	}
	return ""
}

// Whatever the edits, and wherever the agent is started anew between them, the
// tables say what they would say if everything had come at once.
func TestTablesDependOnObjectsAndNotOnHistory(t *testing.T) {
	requireRoot(t)
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(t, nil, drawObjects(t))
		defer func() { b.r.set.Close() }()
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			ids := b.frontendIDs()
			edit := drawEdit(t, &b.objects)
			if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
				before := b.untouched(t, edit)
				b = newBench(t, b.r.set, b.objects)
				for id, want := range before {
					if have := b.raw(t, id); have != want {
						t.Fatalf("service port %s was not edited and has\n%s\nbefore the restart:\n%s", describe(id), have, want)
					}
				}
			} else {
				b.apply(t, edit)
			}
			b.sameIDs(t, ids)
			if rapid.Bool().Draw(t, "recycle") {
				b.recycle()
			}
			fresh := newBench(t, nil, b.objects)
			have, want := tables(t, b.r.set), tables(t, fresh.r.set)
			fresh.r.set.Close()
			if have != want {
				t.Fatalf("tables after the edits:\n%s\ntables from nothing:\n%s", have, want)
			}
		}
		b.recycle()
		if leak := b.leaks(); leak != "" {
			t.Fatalf("leak: %s", leak)
		}
	})
}

func (b *bench) frontendIDs() map[compile.FrontendKey]uint32 {
	out := map[compile.FrontendKey]uint32{}
	for key, f := range b.r.frontends {
		out[key] = f.id
	}
	return out
}

// sameIDs: a frontend keeps its id for its life.
func (b *bench) sameIDs(t rapidT, before map[compile.FrontendKey]uint32) {
	for key, f := range b.r.frontends {
		if id, known := before[key]; known && id != f.id {
			t.Fatalf("frontend %v had id %d and has %d", key, id, f.id)
		}
	}
}

// untouched is what the tables say of the service ports that an edit leaves as
// they are. The compiler knows them; this agent does not hear of the edit.
func (b *bench) untouched(t rapidT, edit compile.Update) map[compile.PortID]string {
	edited := map[compile.PortID]bool{}
	for _, c := range b.compiler.Apply(edit) {
		edited[c.ID] = true
	}
	out := map[compile.PortID]string{}
	for id := range b.r.ports {
		if !edited[id] {
			out[id] = b.raw(t, id)
		}
	}
	return out
}

// raw is every byte that programs read of a service port, ids and places
// included: those of its frontends, the slots that they lead to, its backends.
func (b *bench) raw(t rapidT, id compile.PortID) string {
	p, set := b.r.ports[id], b.r.set
	if p == nil {
		t.Fatalf("service port %s is gone", describe(id))
	}
	var lines []string
	for key, f := range b.r.frontends {
		if f.port != p {
			continue
		}
		lines = append(lines, fmt.Sprintf("frontend %v %d %x", key, f.id, set.FrontendState.Words(f.id, 1)))
		for _, at := range []int{maps.StateInternal, maps.StateExternal} {
			base, count, _ := maps.SplitRangeWord(set.FrontendState.LoadWord(f.id, at))
			lines = append(lines, fmt.Sprintf("slots of %v %x", key, set.Slots.Words(base, count)))
		}
	}
	for _, word := range p.words {
		n, generation := maps.SplitSlotWord(word)
		switch {
		case word == 0:
		case id.Family == service.IPv4:
			lines = append(lines, fmt.Sprintf("backend %d of generation %d %x", n, generation, set.Backends4.Words(n, 1)))
		default:
			lines = append(lines, fmt.Sprintf("backend %d of generation %d %x", n, generation, set.Backends6.Words(n, 1)))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// A new agent that finds everything as it should be writes nothing at all.
func TestAdoptionOfTrueTablesWritesNothing(t *testing.T) {
	requireRoot(t)
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(t, nil, drawObjects(t))
		defer func() { b.r.set.Close() }()
		before := image(t, b.r.set)
		newBench(t, b.r.set, b.objects)
		if after := image(t, b.r.set); after != before {
			at := 0
			for at < min(len(before), len(after)) && before[at] == after[at] {
				at++
			}
			t.Fatalf("written at %d: %.200s, before %.200s", at, after[at:], before[at:])
		}
	})
}

// image is every byte of every table.
func image(t rapidT, s *maps.Set) string {
	names, err1 := s.ServiceNames.Entries()
	ends, err2 := s.TunnelEnds.Entries()
	sources4, err3 := s.Sources4.Entries()
	sources6, err4 := s.Sources6.Entries()
	nodeAddrs4, err5 := s.NodeAddrs4.Entries()
	nodeAddrs6, err6 := s.NodeAddrs6.Entries()
	if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
		t.Fatalf("read tables: %v", err)
	}
	return fmt.Sprint(s.Frontends4.Entries(), s.Frontends6.Entries(), names, ends, sources4, sources6, nodeAddrs4, nodeAddrs6, s.FrontendState.Words(0, 64), s.Slots.Words(0, s.Slots.Len()),
		s.Backends4.Words(0, 128), s.Backends6.Words(0, 128), s.VIPFilter.Words(0, s.VIPFilter.Len()), s.NodeConfig.Words(0, 1))
}

// Tables grow at four fifths and keep what they hold.
func TestTablesGrowAndKeepWhatTheyHold(t *testing.T) {
	requireRoot(t)
	b := newBench(t, nil, compile.Update{})
	defer func() { b.r.set.Close() }()
	small := b.r.set.Sizes()
	for i := range 3000 {
		b.apply(t, many(i, 1))
	}
	grown := b.r.set.Sizes()
	if grown.Frontends4 <= small.Frontends4 || grown.Frontends6 <= small.Frontends6 || grown.Slots <= small.Slots ||
		grown.Backends4 <= small.Backends4 || grown.FrontendState <= small.FrontendState || grown.ServiceNames <= small.ServiceNames {
		t.Errorf("tables did not grow: %+v to %+v", small, grown)
	}
	for _, u := range b.r.Stats() {
		if u.Used*100 > u.Capacity*fullPercent {
			t.Errorf("table %s is left %d of %d full", u.Table, u.Used, u.Capacity)
		}
	}
	fresh := newBench(t, nil, many(0, 3000))
	defer func() { fresh.r.set.Close() }()
	if withoutFilter(t, b.r.set) != withoutFilter(t, fresh.r.set) {
		t.Error("tables differ from those made at once")
	}
}

// An endpoint change makes no system call, so it must not have to wait for what
// earlier ones freed. Tables that are too small for that grow.
func TestChangesSoonFindRoomWithoutWaiting(t *testing.T) {
	requireRoot(t)
	for _, c := range []struct{ others, endpoints int }{{0, 10}, {0, 1000}, {0, 2000}, {300, 1000}, {800, 5000}} {
		t.Run(fmt.Sprintf("%d endpoints beside %d Services", c.endpoints, c.others), func(t *testing.T) {
			all := many(0, c.others+1)
			name := service.Name{Namespace: "many", Name: "s000000"}
			slice := func(n int) compile.Update {
				s := *all.Slices[name]
				s.Endpoints = nil
				for i := range c.endpoints {
					s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: addrAt("10.1.0.0", i), Ready: true, Serving: true})
				}
				s.Endpoints[0].Addr = addrAt("10.2.0.0", n)
				return compile.Update{Slices: map[service.Name]*service.EndpointSlice{name: &s}}
			}
			b := newBench(t, nil, all)
			defer func() { b.r.set.Close() }()
			waits := 0
			b.r.cfg.Wait = func() error { waits++; return nil }
			for n := range 300 {
				if n == 100 {
					waits = 0
				}
				b.apply(t, slice(n))
				if n%50 == 0 { // as Recycle does beside the changes
					b.recycle()
				}
			}
			if waits > 0 {
				t.Errorf("200 changes waited %d times", waits)
			}
		})
	}
}

func addrAt(base string, n int) netip.Addr {
	a := netip.MustParseAddr(base)
	b := a.AsSlice()
	b[len(b)-1] = byte(n)
	b[len(b)-2] = byte(n >> 8)
	out, _ := netip.AddrFromSlice(b)
	return out
}

// While endpoints change, whoever follows a frontend's word finds a set that
// was published, whole. The reader obeys what programs obey: between reading
// the word and the backend no grace period ends.
func TestReadersSeeOnlyPublishedSets(t *testing.T) {
	requireRoot(t)
	name := service.Name{Namespace: "default", Name: "web"}
	svc := &service.Service{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}
	// Generation n of the Service has endpoints 10.0.n.1 to 10.0.n.k, with k of n.
	slice := func(n byte) *service.EndpointSlice {
		s := &service.EndpointSlice{Name: name, Service: "web", Family: service.IPv4, Ports: []service.SlicePort{{Protocol: service.TCP, Port: 80}}}
		for i := range sizeOf(n) {
			s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, n, byte(1 + i)}), Ready: true, Serving: true})
		}
		return s
	}
	update := func(n byte) compile.Update {
		return compile.Update{Slices: map[service.Name]*service.EndpointSlice{name: slice(n)}}
	}
	first := update(0)
	first.Services = map[service.Name]*service.Service{name: svc}
	b := newBench(t, nil, first)
	defer func() { b.r.set.Close() }()
	reader := &reader{set: b.r.set, id: b.r.frontends[compile.FrontendKey{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: service.TCP}].id}
	b.r.cfg.Wait = reader.wait
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- reader.run(stop) }()
	const enough = 50_000
	deadline := time.Now().Add(world.Scaled(time.Minute))
	changes := 0
	for (changes < enough || reader.reads.Load() < enough) && len(done) == 0 && time.Now().Before(deadline) {
		changes++
		b.apply(t, update(byte(changes)))
		if changes%16 == 0 {
			b.r.mu.Lock()
			err := b.r.recycleNow()
			b.r.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	} else if reads := reader.reads.Load(); changes < enough || reads < enough {
		t.Errorf("%d reads during %d changes prove little", reads, changes)
	}
}
