// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// stage writes one service port. Until that succeeds, what the port had stays
// published: what was freed of it is kept, and a later change starts with all
// positions, for it does not know which ones this one has left out.
func (t *transaction) stage(c *compile.Change) error {
	kept, again := t.r.failed[c.ID]
	was := t.freed
	if err := t.stagePort(c, again); err != nil {
		kept.join(t.freed.since(was))
		t.r.failed[c.ID] = kept
		return err
	}
	if again {
		t.freed.join(kept)
		delete(t.r.failed, c.ID)
	}
	return nil
}

// stagePort writes backends and slots where no program can see them, then the
// words of the frontends, which publishes them.
func (t *transaction) stagePort(c *compile.Change, again bool) error {
	p := t.r.ports[c.ID]
	if c.Port == nil {
		if p != nil {
			t.drop(p)
		}
		return nil
	}
	if elsewhere(c.Port) {
		return t.stageElsewhere(c)
	}
	if err := fits(c.Port); err != nil {
		return err
	}
	if p == nil {
		var err error
		if p, err = t.newPort(c.ID); err != nil {
			return err
		}
		p.affinity = c.Port.Affinity
		t.adoptPort(p, c.Port)
	}
	if err := t.stageSources(p, c.Port); err != nil {
		return err
	}
	if err := t.stageBackends(p, c, c.All || again); err != nil {
		return err
	}
	if err := t.stageSlots(p, c.Port); err != nil {
		return err
	}
	if err := t.stageEnds(p, c.Port); err != nil {
		return err
	}
	t.stageName(p, c.Port.Type)
	p.refuse, p.affinity = c.Port.Refuse, c.Port.Affinity
	p.maglev, p.direct = c.Port.MaglevSize > 0, c.Port.Direct
	if err := t.stageFrontends(p, c.Port, again); err != nil {
		return err
	}
	t.dropSources(p, c.Port)
	t.dropEnds(p, c.Port)
	return nil
}

func (t *transaction) newPort(id compile.PortID) (*port, error) {
	p := &carve(&t.r.slabs.ports, 1)[0]
	p.compiled = id
	if known, ok := t.r.found.port(id); ok {
		p.id, p.kind, p.named = known, t.r.found.types[known], true
	} else {
		fresh, err := t.r.take(&t.r.portIDs, maps.ServiceNames)
		if err != nil {
			return nil, err
		}
		p.id = fresh
	}
	t.r.ports[id] = p
	return p, nil
}

// stageName has the name of a service port written if it is new, or its Service
// of another type than before.
func (t *transaction) stageName(p *port, kind service.Type) {
	if p.named && p.kind == kind {
		return
	}
	p.named, p.kind = true, kind
	t.names = append(t.names, p.id)
	t.nameValues = append(t.nameValues, nameOf(p.compiled, kind))
}

func nameOf(id compile.PortID, kind service.Type) bpf.LbServiceName {
	v := bpf.LbServiceName{Proto: uint8(id.Protocol), Family: uint8(id.Family), Type: uint8(kind)}
	maps.PutString(v.Namespace[:], id.Service.Namespace)
	maps.PutString(v.Name[:], id.Service.Name)
	maps.PutString(v.Port[:], id.Port)
	return v
}

// drop takes a service port out of force. Its frontends go first, in commit.
func (t *transaction) drop(p *port) {
	delete(t.r.ports, p.compiled)
	if p.id == 0 { // the addresses of another proxy's Service
		for _, f := range p.declared {
			t.unuseElsewhere(f.Addr.Addr())
		}
		return
	}
	for i, f := range p.frontends {
		if f.port == p {
			f.port = nil
			t.orphans = append(t.orphans, f)
		}
		t.unuse(f.key, p.declared[i].Kind)
	}
	for pos, word := range p.words {
		if word != 0 {
			t.freeBackend(p, pos)
		}
	}
	t.freeSpan(p.cluster)
	if !p.shared {
		t.freeSpan(p.local)
	}
	t.removeSources(p, p.sources)
	for addr := range p.ends {
		t.removeEnd(p, addr)
	}
	t.gone = append(t.gone, p)
}

func (t *transaction) freeSpan(s span) {
	if s.count > 0 {
		t.spans = append(t.spans, s)
	}
}

func (t *transaction) freeBackend(p *port, pos int) {
	id, _ := maps.SplitSlotWord(p.words[pos])
	t.dead = append(t.dead, deadBackend{p.compiled.Family, id})
	p.words[pos] = 0
}

// stageBackends writes the backends that differ: of all positions, or of those
// that were touched.
func (t *transaction) stageBackends(p *port, c *compile.Change, all bool) error {
	positions := c.Port.Positions()
	if p.words == nil {
		p.words = carve(&t.r.slabs.words, positions)
	}
	if n := positions - len(p.words); n > 0 {
		p.words = append(p.words, make([]uint64, n)...)
	}
	if !all {
		for _, pos := range c.Touched {
			if err := t.stageBackend(p, pos, c.Port.Backend(pos)); err != nil {
				return err
			}
		}
		return nil
	}
	for pos := range int32(positions) {
		if err := t.stageBackend(p, pos, c.Port.Backend(pos)); err != nil {
			return err
		}
	}
	for pos := positions; pos < len(p.words); pos++ {
		if p.words[pos] != 0 {
			t.freeBackend(p, pos)
		}
	}
	return nil
}

func (t *transaction) stageBackend(p *port, pos int32, b compile.Backend) error {
	if p.words[pos] != 0 {
		id, generation := maps.SplitSlotWord(p.words[pos])
		addr, flags := t.r.readBackend(p.compiled.Family, id)
		if addr == b.Addr {
			if want := backendFlags(&b); want != flags {
				t.r.storeFlags(p, id, generation, addr, want)
			}
			return nil
		}
		t.freeBackend(p, int(pos))
	}
	if b.State == 0 {
		return nil
	}
	return t.newBackend(p, int(pos), &b)
}

func backendFlags(b *compile.Backend) uint8 {
	flags := uint8(b.State)
	if b.InCluster {
		flags |= maps.BackendInCluster
	}
	if b.InLocal {
		flags |= maps.BackendInLocal
	}
	if b.OnNode {
		flags |= maps.BackendOnNode
	}
	if b.Nodeless {
		flags |= maps.BackendNodeless
	}
	return flags
}

func (t *transaction) newBackend(p *port, pos int, b *compile.Backend) error {
	r := t.r
	allocator, table := &r.backends4, maps.Backends4
	if p.compiled.Family == service.IPv6 {
		allocator, table = &r.backends6, maps.Backends6
	}
	id, err := r.take(allocator, table)
	if err != nil {
		return err
	}
	p.words[pos] = maps.SlotWord(id, r.writeBackend(p, id, b.Addr, backendFlags(b)))
	return nil
}

// writeBackend fills an entry that no slot names yet, and returns the new
// generation. Sockets may still hold the id with an old generation: the word
// that makes the entry usable comes last.
func (r *Reconciler) writeBackend(p *port, id uint32, addr netip.AddrPort, flags uint8) uint32 {
	proto := uint8(p.compiled.Protocol)
	if p.compiled.Family == service.IPv4 {
		b := r.set.Backends4.At(id)
		b.ServicePort = p.id
		b.Generation++
		b.Masquerade = 0
		r.set.Backends4.StoreWord(id, maps.Backend4Flags, maps.Backend4Word(addr, proto, flags))
		return b.Generation
	}
	b := r.set.Backends6.At(id)
	b.Addr = maps.Addr16(addr.Addr())
	b.ServicePort = p.id
	b.Masquerade = bpf.LbAddress{}
	generation := b.Generation + 1
	r.set.Backends6.StoreWord(id, maps.Backend6Flags, maps.Backend6Word(addr, proto, flags, generation))
	return generation
}

func (r *Reconciler) storeFlags(p *port, id, generation uint32, addr netip.AddrPort, flags uint8) {
	proto := uint8(p.compiled.Protocol)
	if p.compiled.Family == service.IPv4 {
		r.set.Backends4.StoreWord(id, maps.Backend4Flags, maps.Backend4Word(addr, proto, flags))
		return
	}
	r.set.Backends6.StoreWord(id, maps.Backend6Flags, maps.Backend6Word(addr, proto, flags, generation))
}

// readBackend tells where a backend is and its flags. Nobody else writes them.
func (r *Reconciler) readBackend(family service.Family, id uint32) (netip.AddrPort, uint8) {
	if family == service.IPv4 {
		b := r.set.Backends4.At(id)
		return netip.AddrPortFrom(maps.FromAddr4(b.Addr), maps.Port16(b.Port)), b.Flags
	}
	b := r.set.Backends6.At(id)
	return netip.AddrPortFrom(maps.FromAddr16(b.Addr), maps.Port16(b.Port)), b.Flags
}

// killBackend marks a backend dead and puts its id into quarantine.
func (r *Reconciler) killBackend(d deadBackend) {
	r.markDead(d)
	kind := backend4ID
	if d.family == service.IPv6 {
		kind = backend6ID
	}
	r.retire(retiree{kind: kind, id: d.id})
}

// markDead makes sockets and affinity let go of a backend.
func (r *Reconciler) markDead(d deadBackend) {
	if d.family == service.IPv4 {
		word := r.set.Backends4.LoadWord(d.id, maps.Backend4Flags)
		r.set.Backends4.StoreWord(d.id, maps.Backend4Flags, word&^(0xff<<56))
		return
	}
	word := r.set.Backends6.LoadWord(d.id, maps.Backend6Flags)
	r.set.Backends6.StoreWord(d.id, maps.Backend6Flags, word&^(0xff<<24))
}

// stageSlots writes the sets that differ from what is published to fresh
// slots. The old ones stay as they are: programs may be reading them. Sets that
// no frontend offers have no slots.
func (t *transaction) stageSlots(p *port, c *compile.Port) error {
	wantCluster, wantLocal := offered(c)
	old := p.cluster
	cluster, err := t.fill(p, c, old, wantCluster)
	if err != nil {
		return err
	}
	p.cluster = cluster
	if cluster != old {
		t.freeSpan(old)
	}
	current := p.local
	if p.shared {
		current = span{}
	}
	p.shared = isShared(c, wantLocal, wantCluster)
	if p.shared {
		t.freeSpan(current)
		p.local = span{cluster.base, uint32(len(wantLocal))}
		return nil
	}
	local, err := t.fill(p, c, current, wantLocal)
	if err != nil {
		p.local = current
		return err
	}
	if local != current {
		t.freeSpan(current)
	}
	p.local = local
	return nil
}

// fits tells whether the sets of a port have room in its Maglev tables. One that
// does not fit now will not for a while: nothing is taken for it meanwhile.
func fits(c *compile.Port) error {
	cluster, local := offered(c)
	if n := max(len(cluster), len(local)); uint32(n) > c.Slots(n) {
		return fmt.Errorf("%d endpoints do not fit a Maglev table of %d slots: raise --maglev-table-size", n, c.MaglevSize)
	}
	return nil
}

// offered are the sets of a port that some frontend has in some scope.
func offered(c *compile.Port) (cluster, local []int32) {
	for i := range c.Frontends {
		f := &c.Frontends[i]
		if f.Internal == compile.Cluster || f.External == compile.Cluster {
			cluster = c.Cluster
		}
		if f.Internal == compile.Local || f.External == compile.Local {
			local = c.Local
		}
	}
	return cluster, local
}

// isShared tells whether one range of slots serves both sets, as the Local one
// is its beginning. Maglev tables have no beginning.
func isShared(c *compile.Port, local, cluster []int32) bool {
	return len(local) > 0 && c.MaglevSize == 0 && len(local) <= len(cluster) && slices.Equal(local, cluster[:len(local)])
}

// fill returns a span that holds the backends at the given positions: the
// current one when it does already, else a fresh one. While tables are adopted
// another order is as good.
func (t *transaction) fill(p *port, c *compile.Port, current span, positions []int32) (span, error) {
	n := c.Slots(len(positions))
	if n == 0 {
		return span{}, nil
	}
	if c.MaglevSize > 0 {
		positions = t.permute(c, positions)
	}
	if current.count == n && t.holds(p, current, positions) {
		return current, nil
	}
	if t.r.found != nil && c.MaglevSize == 0 && t.sameSet(p, c, current, positions) {
		return current, nil
	}
	fresh, err := t.r.takeSpan(n)
	if err != nil {
		return span{}, err
	}
	words := t.r.set.Slots.Words(fresh.base, n)
	for i, pos := range positions {
		words[i] = p.words[pos]
	}
	return fresh, nil
}

// permute spreads positions over a Maglev table: what each slot holds.
func (t *transaction) permute(c *compile.Port, positions []int32) []int32 {
	members := make([]compile.Member, len(positions))
	for i, pos := range positions {
		members[i] = compile.Member{Addr: c.Backend(pos).Addr, Weight: c.Weight(pos)}
	}
	table := t.r.maglev.Fill(c.MaglevSize, members)
	for i, member := range table {
		table[i] = positions[member]
	}
	return table
}

func (t *transaction) holds(p *port, s span, positions []int32) bool {
	for i, word := range t.r.set.Slots.Words(s.base, s.count) {
		if word != p.words[positions[i]] {
			return false
		}
	}
	return true
}

// word is the range word of a frontend of the port.
func (p *port) word(policy compile.Policy, guarded bool) uint64 {
	s, flags := p.cluster, uint8(0)
	if policy == compile.Local {
		s, flags = p.local, maps.RangeLocal
	}
	if s.count == 0 {
		s = span{}
		if p.refuse {
			flags |= maps.RangeRefuse
		}
	}
	if p.affinity > 0 {
		flags |= maps.RangeAffinity
	}
	if p.maglev {
		flags |= maps.RangeMaglev
	}
	if guarded {
		flags |= maps.RangeGuarded
	}
	return maps.RangeWord(s.base, s.count, flags)
}

func (p *port) owner() uint64 {
	return uint64(p.id) | uint64(p.affinity/time.Second)<<32
}
