// SPDX-License-Identifier: Apache-2.0

// Needs root: real tables, no programs.

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

var errInjected = errors.New("injected")

// retry does what the agent does after an error.
func (b *bench) retry() error {
	var changes []compile.Change
	for _, id := range b.r.Failed() {
		changes = append(changes, compile.Change{ID: id, Port: b.compiler.Port(id), All: true})
	}
	return b.r.Apply(changes)
}

// breakTable makes every system call on a table fail until it is mended.
func breakTable(t rapidT, set *maps.Set, name string) (mend func()) {
	t.Helper()
	broken, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 3, ValueSize: 3, MaxEntries: 1})
	if err != nil {
		t.Fatalf("make a broken table: %v", err)
	}
	table := set.Map(name)
	whole := *table
	*table = *broken
	return func() {
		*table = whole
		broken.Close()
	}
}

// exhaust leaves a few ids to be handed out, and lets no table grow.
func (b *bench) exhaust(a *ids, left uint32) (mend func()) {
	attach, free := b.r.cfg.Attach, a.free
	b.r.cfg.Attach = func(*maps.Set) error { return errInjected }
	a.free, a.limit = nil, a.next+left
	return func() {
		b.r.cfg.Attach = attach
		a.free = append(a.free, free...)
		b.r.setLimits()
	}
}

// strangers finds slots of a published set that name a backend of another
// service port, or none.
func strangers(set *maps.Set) string {
	found := ""
	check := func(addr netip.AddrPort, id uint32) {
		if maps.IsAddressOwner(id) {
			return
		}
		state := set.FrontendState.Load(id)
		for _, word := range []uint64{state.Internal, state.External} {
			base, count, _ := maps.SplitRangeWord(word)
			for i := base; i < base+count; i++ {
				slot := set.Slots.Load(i)
				port, generation := set.Backends4.Load(slot.Backend).ServicePort, set.Backends4.Load(slot.Backend).Generation
				if addr.Addr().Is6() {
					port, generation = set.Backends6.Load(slot.Backend).ServicePort, set.Backends6.Load(slot.Backend).Generation
				}
				if port != state.ServicePort || generation != slot.Generation {
					found = fmt.Sprintf("frontend %s of service port %d: slot %d names generation %d of backend %d, which has %d and belongs to service port %d",
						addr, state.ServicePort, i, slot.Generation, slot.Backend, generation, port)
				}
			}
		}
	}
	for key, id := range set.Frontends4.All() {
		addr, _ := maps.FrontendOf4(key)
		check(addr, id)
	}
	for key, id := range set.Frontends6.All() {
		addr, _ := maps.FrontendOf6(key)
		check(addr, id)
	}
	return found
}

// Whatever could not be written, and however often: no client gets to a backend
// of another service port, and when it can be written the tables say what they
// would say if nothing had ever failed.
func TestFailuresLeadNobodyAstrayAndLeaveNoTrace(t *testing.T) {
	requireRoot(t)
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(t, nil, drawObjects(t))
		defer func() { b.r.set.Close() }()
		for range rapid.IntRange(1, 3).Draw(t, "times") {
			mend := b.drawFailure(t)
			for range rapid.IntRange(1, 4).Draw(t, "edits while it lasts") {
				// Tables are as right as they can be; what fails is not asked.
				_ = b.r.Apply(b.compiler.Apply(drawEdit(t, &b.objects)))
				if rapid.Bool().Draw(t, "retry") {
					_ = b.retry()
				}
				if found := strangers(b.r.set); found != "" {
					t.Fatal(found)
				}
				b.recycle()
			}
			mend()
			if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
				b = newBench(t, b.r.set, b.objects)
			} else if err := b.retry(); err != nil {
				t.Fatalf("retry: %v", err)
			}
			fresh := newBench(t, nil, b.objects)
			have, want := tables(t, b.r.set), tables(t, fresh.r.set)
			fresh.r.set.Close()
			if have != want {
				t.Fatalf("tables after failures:\n%s\ntables from nothing:\n%s", have, want)
			}
			b.recycle()
			if leak := b.leaks(); leak != "" {
				t.Fatalf("leak: %s", leak)
			}
			for key, f := range b.r.frontends {
				if f.port == nil {
					t.Fatalf("frontend %v is nobody's", key)
				}
			}
		}
	})
}

func (b *bench) drawFailure(t *rapid.T) (mend func()) {
	left := uint32(rapid.IntRange(0, 3).Draw(t, "left"))
	switch what := rapid.SampledFrom([]string{"backends4", "backends6", "frontends", "ports", "slots", maps.Sources4, maps.TunnelEnds, maps.ServiceNames}).Draw(t, "failure"); what {
	case "backends4":
		return b.exhaust(&b.r.backends4, left)
	case "backends6":
		return b.exhaust(&b.r.backends6, left)
	case "frontends":
		return b.exhaust(&b.r.frontendIDs, left)
	case "ports":
		return b.exhaust(&b.r.portIDs, left)
	case "slots":
		free := b.r.slots.free
		b.r.slots.free = [25][]uint32{}
		mendIDs := b.exhaust(&ids{}, 0)
		b.r.slots.limit = b.r.slots.next + left
		return func() {
			for c, list := range free {
				b.r.slots.free[c] = append(b.r.slots.free[c], list...)
			}
			mendIDs()
		}
	default:
		mendIDs := b.exhaust(&ids{}, 0)
		mendTable := breakTable(t, b.r.set, what)
		return func() { mendTable(); mendIDs() }
	}
}

// endpoints makes a slice of endpoints from the first-th to the last-th address.
func endpoints(name string, first, last int) compile.Update {
	s := &service.EndpointSlice{Name: service.Name{Namespace: "default", Name: name}, Service: name,
		Family: service.IPv4, Ports: []service.SlicePort{{Protocol: service.TCP, Port: 8080}}}
	for i := first; i <= last; i++ {
		s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: addrAt("10.0.0.0", i), Ready: true, Serving: true})
	}
	return compile.Update{Slices: map[service.Name]*service.EndpointSlice{s.Name: s}}
}

// A set that does not fit its Maglev table is not served, and will not be for
// long; what was served before goes on, with its own backends.
func TestASetThatDoesNotFitKeepsTheBackendsOfTheOneInForce(t *testing.T) {
	requireRoot(t)
	balanced, other := claimant("balanced", ""), claimant("other", "")
	balanced.Type, balanced.Algorithm = service.LoadBalancer, service.Maglev
	balanced.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	other.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.2")}
	b := newBench(t, nil, services(balanced, other))
	defer func() { b.r.set.Close() }()
	b.apply(t, endpoints("balanced", 1, 10))
	for last := 300; last < 310; last++ {
		if err := b.r.Apply(b.compiler.Apply(endpoints("balanced", 11, last))); err == nil {
			t.Fatal("a set that does not fit was taken")
		}
		b.recycle()
		b.apply(t, endpoints("other", 1000, 1000+last))
		if found := strangers(b.r.set); found != "" {
			t.Fatal(found)
		}
	}
	used := b.r.backends4.used
	if want := uint32(10 + 310); used != want {
		t.Errorf("%d backends are in use, want %d", used, want)
	}
	b.apply(t, endpoints("balanced", 20, 30))
	b.recycle()
	if leak := b.leaks(); leak != "" {
		t.Errorf("leak: %s", leak)
	}
}

// What a table did not take is written when it does, though nothing changes.
func TestWhatATableDidNotTakeIsWrittenByTheRetry(t *testing.T) {
	requireRoot(t)
	for _, table := range []string{maps.Sources4, maps.Sources6, maps.TunnelEnds, maps.ServiceNames} {
		t.Run(table, func(t *testing.T) {
			s := claimant("web", "")
			s.Type, s.Forwarding = service.LoadBalancer, service.DSR
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr("fd00:96::1"))
			s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}
			slice := endpoints("web", 1, 2)
			for _, x := range slice.Slices {
				x.Endpoints[0].NodeName = "here"
			}
			b := newBench(t, nil, services())
			defer func() { b.r.set.Close() }()
			all := compile.Update{Services: services(s).Services, Slices: slice.Slices}
			mend := breakTable(t, b.r.set, table)
			if err := b.r.Apply(b.compiler.Apply(all)); err == nil {
				t.Error("nobody was told that it failed")
			}
			if err := b.retry(); err == nil {
				t.Error("what fails still was reported as mended")
			}
			mend()
			if err := b.retry(); err != nil {
				t.Error(err)
			}
			fresh := newBench(t, nil, all)
			defer func() { fresh.r.set.Close() }()
			if have, want := tables(t, b.r.set), tables(t, fresh.r.set); have != want {
				t.Errorf("tables are\n%s\nfrom nothing\n%s", have, want)
			}
		})
	}
}

// A first load that could not make its tables is made again, of everything.
func TestTablesThatCouldNotBeMadeAreMadeForAllThereIs(t *testing.T) {
	requireRoot(t)
	all := many(0, 3)
	attached := 0
	r, err := New(Config{Attach: func(*maps.Set) error { attached++; return nil }, Wait: func() error { return nil }, Node: testNode})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{objects: all, compiler: compile.New(compile.Config{}), r: r}
	r.draft.Close() // its tables are no use any more
	if err := r.Apply(b.compiler.Apply(all)); err == nil {
		t.Fatal("tables were made of nothing")
	}
	if attached > 0 {
		t.Error("programs were attached without tables")
	}
	if err := b.retry(); err != nil {
		t.Fatal(err)
	}
	defer r.set.Close()
	fresh := newBench(t, nil, all)
	defer func() { fresh.r.set.Close() }()
	if have, want := tables(t, r.set), tables(t, fresh.r.set); have != want {
		t.Errorf("tables are\n%s\nfrom nothing\n%s", have, want)
	}
}

// When programs cannot be switched to larger tables, the old ones go on to be
// kept, their filter too.
func TestTablesThatCouldNotBeSwitchedToLeaveTheOldOnesAsTheyWere(t *testing.T) {
	requireRoot(t)
	b := newBench(t, nil, many(0, 1))
	defer func() { b.r.set.Close() }()
	want := b.r.set.Sizes()
	want.FilterBits *= 4
	mend := b.exhaust(&ids{}, 0)
	if err := b.r.growTo(want); !errors.Is(err, errInjected) {
		t.Fatalf("grow: %v", err)
	}
	mend()
	b.apply(t, many(1, 500))
	all := many(0, 501)
	gone := many(0, 1)
	for name := range gone.Services {
		gone.Services[name], gone.Slices[name] = nil, nil
		delete(all.Services, name)
		delete(all.Slices, name)
	}
	b.apply(t, gone)
	fresh := newBench(t, nil, all)
	defer func() { fresh.r.set.Close() }()
	if have, want := tables(t, b.r.set), tables(t, fresh.r.set); have != want {
		t.Errorf("tables are\n%s\nfrom nothing\n%s", have, want)
	}
}
