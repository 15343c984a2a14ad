// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"net/netip"
	"slices"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// found is what stood in the tables when this agent started. Service ports,
// frontends and backends take up what is theirs and keep its id; what is left
// after the first Apply belongs to nobody.
type found struct {
	ports     map[compile.PortID]uint32
	types     map[uint32]service.Type // by service port
	frontends map[compile.FrontendKey]uint32
	owners    map[netip.Addr]uint32
	backends  map[uint32]map[netip.AddrPort]foundBackend // by service port
	ends      map[bpf.LbTunnelEndKey]uint32
}

type foundBackend struct {
	family         service.Family
	id, generation uint32
}

// port, backend: what is left of it to take up. A nil found has nothing.
func (f *found) port(id compile.PortID) (uint32, bool) {
	if f == nil {
		return 0, false
	}
	n, ok := f.ports[id]
	delete(f.ports, id)
	return n, ok
}

func (f *found) backend(port uint32, addr netip.AddrPort) (id, generation uint32, ok bool) {
	if f == nil {
		return 0, 0, false
	}
	b, ok := f.backends[port][addr]
	delete(f.backends[port], addr)
	return b.id, b.generation, ok
}

// readTables takes stock. Ids that stand twice, as only a damaged table has
// them, are taken from the second, who gets a new one.
func (r *Reconciler) readTables() (*found, error) {
	f := &found{
		ports:     map[compile.PortID]uint32{},
		types:     map[uint32]service.Type{},
		frontends: map[compile.FrontendKey]uint32{},
		owners:    map[netip.Addr]uint32{},
		backends:  map[uint32]map[netip.AddrPort]foundBackend{},
	}
	if err := r.readNames(f); err != nil {
		return nil, err
	}
	r.readFrontends(f)
	r.readBackends(f)
	var err error
	f.ends, err = r.set.TunnelEnds.Entries()
	return f, err
}

func (r *Reconciler) readNames(f *found) error {
	var err error
	for id, v := range r.set.ServiceNames.All(&err) {
		f.ports[compile.PortID{
			Service:  service.Name{Namespace: maps.String(v.Namespace[:]), Name: maps.String(v.Name[:])},
			Port:     maps.String(v.Port[:]),
			Protocol: service.Protocol(v.Proto), Family: service.Family(v.Family),
		}] = id
		f.types[id] = service.Type(v.Type)
		r.portIDs.next = max(r.portIDs.next, id+1)
	}
	return err
}

func (r *Reconciler) readFrontends(f *found) {
	seen := map[uint32]bool{}
	entry := func(addr netip.AddrPort, proto uint8, id uint32) {
		r.entries[table(addr)]++
		if maps.IsAddressOwner(id) {
			f.owners[addr.Addr()] = id
			return
		}
		key := compile.FrontendKey{Addr: addr, Protocol: service.Protocol(proto)}
		if seen[id] || id >= r.set.FrontendState.Len() {
			id = ^uint32(0) // to be removed
		} else {
			seen[id] = true
			r.frontendIDs.next = max(r.frontendIDs.next, id+1)
			r.readSpans(id)
		}
		f.frontends[key] = id
	}
	for k, id := range r.set.Frontends4.All() {
		addr, proto := maps.FrontendOf4(k)
		entry(addr, proto, id)
	}
	for k, id := range r.set.Frontends6.All() {
		addr, proto := maps.FrontendOf6(k)
		entry(addr, proto, id)
	}
}

// readSpans keeps new spans clear of those in use.
func (r *Reconciler) readSpans(id uint32) {
	state := r.set.FrontendState.Load(id)
	for _, word := range []uint64{state.External, state.Internal} {
		if base, count, _ := maps.SplitRangeWord(word); count > 0 {
			r.slots.next = max(r.slots.next, min(base+1<<class(count), r.slots.limit))
		}
	}
}

func (r *Reconciler) readBackends(f *found) {
	add := func(port uint32, addr netip.AddrPort, b foundBackend) {
		if f.backends[port] == nil {
			f.backends[port] = map[netip.AddrPort]foundBackend{}
		}
		f.backends[port][addr] = b
	}
	for id := range r.set.Backends4.Len() {
		b := r.set.Backends4.At(id)
		if b.Flags&maps.BackendStateMask != 0 {
			add(b.ServicePort, netip.AddrPortFrom(maps.FromAddr4(b.Addr), maps.Port16(b.Port)), foundBackend{service.IPv4, id, b.Generation})
			r.backends4.next = id + 1
		}
	}
	for id := range r.set.Backends6.Len() {
		b := r.set.Backends6.At(id)
		if b.Flags&maps.BackendStateMask != 0 {
			add(b.ServicePort, netip.AddrPortFrom(maps.FromAddr16(b.Addr), maps.Port16(b.Port)), foundBackend{service.IPv6, id, b.Generation})
			r.backends6.next = id + 1
		}
	}
}

// adoptFrontend takes up a frontend of the tables, with its words as they are.
func (r *Reconciler) adoptFrontend(f *frontend) bool {
	if r.found == nil {
		return false
	}
	id, ok := r.found.frontends[f.key]
	if !ok || id == ^uint32(0) {
		return false
	}
	delete(r.found.frontends, f.key)
	f.id = id
	f.registered = true
	f.words[maps.StateExternal] = r.set.FrontendState.LoadWord(id, maps.StateExternal)
	f.words[maps.StateInternal] = r.set.FrontendState.LoadWord(id, maps.StateInternal)
	f.owner = r.set.FrontendState.LoadWord(id, stateOwner)
	return true
}

// adoptPort takes up the spans that the port's frontends have, when they hold
// the right backends in an order that is as good as ours: this node's first.
func (t *transaction) adoptPort(p *port, c *compile.Port) {
	r := t.r
	if r.found == nil {
		return
	}
	cluster, local := r.foundSpans(c)
	t.adoptBackends(p, c)
	wantCluster, wantLocal := offered(c)
	if c.MaglevSize > 0 { // one slot in a wrong place is another table: fill compares them all
		p.cluster, p.local = cluster, local
		return
	}
	if t.sameSet(p, c, cluster, wantCluster) {
		p.cluster = cluster
	}
	if isShared(c, wantLocal, wantCluster) || len(wantLocal) == 0 {
		return
	}
	if t.sameSet(p, c, local, wantLocal) {
		p.local = local
	}
}

// foundSpans reads the port's spans off the words of its frontends.
func (r *Reconciler) foundSpans(c *compile.Port) (cluster, local span) {
	for _, f := range c.Frontends {
		id, ok := r.found.frontends[f.FrontendKey]
		if !ok || id == ^uint32(0) {
			continue
		}
		state := r.set.FrontendState.Load(id)
		for _, word := range []uint64{state.External, state.Internal} {
			base, count, flags := maps.SplitRangeWord(word)
			if count == 0 || uint64(base)+uint64(count) > uint64(r.slots.limit) {
				continue
			}
			if flags&maps.RangeLocal != 0 {
				local = span{base, count}
			} else {
				cluster = span{base, count}
			}
		}
	}
	return cluster, local
}

// adoptBackends takes up the ids of all backends ahead of stageBackends, which
// then finds them in place.
func (t *transaction) adoptBackends(p *port, c *compile.Port) {
	p.words = carve(&t.r.slabs.words, c.Positions())
	for pos := range p.words {
		b := c.Backend(int32(pos))
		if b.State == 0 {
			continue
		}
		if id, generation, ok := t.r.found.backend(p.id, b.Addr); ok {
			p.words[pos] = maps.SlotWord(id, generation)
		}
	}
}

func (t *transaction) sameSet(p *port, c *compile.Port, s span, positions []int32) bool {
	if s.count == 0 || int(s.count) != len(positions) {
		return false
	}
	want := make([]uint64, 0, len(positions))
	onNode := 0
	for _, pos := range positions {
		if p.words[pos] == 0 {
			return false
		}
		if c.Backend(pos).OnNode {
			onNode++
		}
		want = append(want, p.words[pos])
	}
	have := slices.Clone(t.r.set.Slots.Words(s.base, s.count))
	for _, part := range [][2]int{{0, onNode}, {onNode, len(want)}} {
		slices.Sort(have[part[0]:part[1]])
		slices.Sort(want[part[0]:part[1]])
	}
	return slices.Equal(have, want)
}

// finishAdoption removes what nobody took up, in the order of removal, and
// makes what lies between the entries in use available.
func (r *Reconciler) finishAdoption() error {
	f := r.found
	r.found = nil
	var errs []error
	for key := range f.frontends {
		r.deleteKey(key.Addr, uint8(key.Protocol))
	}
	for addr := range f.owners {
		r.deleteKey(netip.AddrPortFrom(addr, 0), 0)
	}
	for _, id := range f.ports {
		errs = append(errs, r.set.ServiceNames.Delete(id))
	}
	for _, ofPort := range f.backends {
		for _, b := range ofPort {
			r.markDead(deadBackend{b.family, b.id})
		}
	}
	for id, kept := range r.failed {
		for _, d := range kept.dead {
			r.markDead(d)
		}
		r.failed[id] = freed{} // what named it has gone with the frontends
	}
	errs = append(errs, r.removeStraySources())
	for key := range f.ends {
		errs = append(errs, r.set.TunnelEnds.Delete(key))
	}
	r.torn = r.torn || errors.Join(errs...) != nil
	r.resetFilter()
	r.storeNodePortRange()
	// Programs may have read entries that were removed just now.
	errs = append(errs, r.cfg.Wait())
	r.retired = nil
	r.set.Frontends4.ReleaseAll()
	r.set.Frontends6.ReleaseAll()
	r.rebuildAllocators()
	return errors.Join(errs...)
}

// resetFilter clears the bits of addresses that nobody has any more.
func (r *Reconciler) resetFilter() {
	want := make([]uint64, r.set.VIPFilter.Len())
	for bit := range r.filter {
		want[bit/64] |= 1 << (bit % 64)
	}
	for i, word := range want {
		if r.set.VIPFilter.LoadWord(uint32(i), 0) != word {
			r.set.VIPFilter.StoreWord(uint32(i), 0, word)
		}
	}
}

// rebuildAllocators derives what is free from what is in use.
func (r *Reconciler) rebuildAllocators() {
	var ports, frontends, ids4, ids6 []uint32
	var used []span
	for _, p := range r.ports {
		if p.id == 0 {
			continue
		}
		ports = append(ports, p.id)
		if p.cluster.count > 0 {
			used = append(used, p.cluster)
		}
		if !p.shared && p.local.count > 0 {
			used = append(used, p.local)
		}
		for _, word := range p.words {
			if word == 0 {
				continue
			}
			id, _ := maps.SplitSlotWord(word)
			if p.compiled.Family == service.IPv4 {
				ids4 = append(ids4, id)
			} else {
				ids6 = append(ids6, id)
			}
		}
	}
	for _, f := range r.frontends {
		frontends = append(frontends, f.id)
	}
	r.portIDs.rebuild(ports, 1)
	r.frontendIDs.rebuild(frontends, 0)
	r.backends4.rebuild(ids4, 0)
	r.backends6.rebuild(ids6, 0)
	r.slots.rebuild(used)
}

func (a *ids) rebuild(used []uint32, first uint32) {
	slices.Sort(used)
	a.free, a.used = nil, uint32(len(used))
	next := first
	for _, id := range used {
		for ; next < id; next++ {
			a.free = append(a.free, next)
		}
		next = id + 1
	}
	a.next = next
}

func (a *spans) rebuild(used []span) {
	slices.SortFunc(used, func(x, y span) int { return int(x.base) - int(y.base) })
	*a = spans{limit: a.limit}
	for _, s := range used {
		a.release(a.next, s.base)
		a.next = s.base + 1<<class(s.count)
		a.used += 1 << class(s.count)
	}
}
