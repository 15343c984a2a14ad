// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"slices"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// addressUse counts why an address stands in vip_filter and in the owner
// entries of the frontends tables.
type addressUse struct {
	frontends  uint32 // that have it
	clusterIPs uint32 // of them, ClusterIPs: other ports of the address are refused
	elsewhere  uint32 // Services of other proxies that have it
	node       bool
}

func (u *addressUse) unused() bool {
	return u.frontends == 0 && u.elsewhere == 0 && !u.node
}

// ownerValue is the value of the address's owner entry; false for none.
func (u *addressUse) ownerValue() (uint32, bool) {
	switch {
	case u.elsewhere > 0:
		return maps.AddressElsewhere, true
	case u.clusterIPs > 0:
		return maps.AddressOurs, true
	case u.frontends > 0 && !u.node:
		return maps.AddressPublished, true
	}
	return 0, false
}

// word 2 of a frontend's state: service port and affinity timeout.
const stateOwner = 2

// stageFrontends publishes the port's sets through the frontends it has, and
// takes up or lets go frontends where that changed. Of a port that could not do
// so before, others may have taken frontends and given them back.
func (t *transaction) stageFrontends(p *port, c *compile.Port, again bool) error {
	if again || !slices.Equal(p.declared, c.Frontends) {
		if err := t.exchangeFrontends(p, c.Frontends); err != nil {
			return err
		}
	}
	for i, f := range p.frontends {
		if f.port == p { // else another service port has taken it since
			d := &p.declared[i]
			external := p.word(d.External, d.GuardSources) | t.r.forwarding(p, d)
			t.r.publish(f, external, p.word(d.Internal, d.GuardSources))
		}
	}
	return nil
}

// forwarding are the flags of an external word that say what may come from
// outside the cluster, and how it is passed on.
func (r *Reconciler) forwarding(p *port, f *compile.Frontend) uint64 {
	switch {
	case f.Kind == compile.ClusterIP && !r.cfg.ExternalClusterIP:
		return maps.RangeWord(0, 0, maps.RangeInside)
	case p.direct:
		return maps.RangeWord(0, 0, maps.RangeDSR)
	}
	return 0
}

// publish stores what differs of a frontend's state. The words go last: who
// sees a new range finds its owner.
func (r *Reconciler) publish(f *frontend, external, internal uint64) {
	if owner := f.port.owner(); owner != f.owner {
		f.owner = owner
		r.set.FrontendState.StoreWord(f.id, stateOwner, owner)
	}
	for i, word := range [2]uint64{maps.StateExternal: external, maps.StateInternal: internal} {
		if f.words[i] != word {
			f.words[i] = word
			r.set.FrontendState.StoreWord(f.id, i, word)
		}
	}
}

func (t *transaction) exchangeFrontends(p *port, want []compile.Frontend) error {
	fresh, err := t.findFrontends(want)
	if err != nil {
		return err
	}
	old, kinds := p.frontends, p.declared
	p.frontends, p.declared = fresh, want
	for i, f := range fresh {
		t.takeUp(f, p, want[i].Kind)
	}
	for i, f := range old {
		if f.port == p && !slices.Contains(p.frontends, f) {
			f.port = nil
			t.orphans = append(t.orphans, f)
		}
		t.unuse(f.key, kinds[i].Kind)
	}
	return nil
}

// findFrontends returns the frontends that are wanted, all or none.
func (t *transaction) findFrontends(want []compile.Frontend) ([]*frontend, error) {
	found := carve(&t.r.slabs.refs, len(want))[:0]
	for i := range want {
		f, err := t.frontend(want[i].FrontendKey)
		if err != nil {
			t.forgetUnused(found)
			return nil, err
		}
		found = append(found, f)
	}
	return found, nil
}

// frontend finds or makes the frontend of a key. A key keeps its id when it
// moves from one Service to another.
func (t *transaction) frontend(key compile.FrontendKey) (*frontend, error) {
	r := t.r
	f := r.frontends[key]
	if f != nil {
		return f, nil
	}
	f = &carve(&t.r.slabs.frontends, 1)[0]
	f.key = key
	if !r.adoptFrontend(f) {
		id, err := r.take(&r.frontendIDs, maps.FrontendState)
		if err != nil {
			return nil, err
		}
		f.id = id
		r.set.FrontendState.At(id).Generation++
		// What is there is anybody's. Until its port is staged to the end,
		// a frontend has empty ranges.
		r.set.FrontendState.StoreWord(id, maps.StateExternal, 0)
		r.set.FrontendState.StoreWord(id, maps.StateInternal, 0)
	}
	r.frontends[key] = f
	return f, nil
}

// forgetUnused lets go of frontends that no port has come to have. Those that
// are in the table go in commit; no program has seen the others.
func (t *transaction) forgetUnused(frontends []*frontend) {
	for _, f := range frontends {
		switch {
		case f.port != nil:
		case f.registered:
			t.orphans = append(t.orphans, f)
		default:
			delete(t.r.frontends, f.key)
			t.r.frontendIDs.give(f.id)
		}
	}
}

// takeUp makes a frontend p's.
func (t *transaction) takeUp(f *frontend, p *port, kind compile.Kind) {
	f.port = p
	t.r.use(t, f.key, kind)
	if !f.registered {
		f.registered = true
		// Its words are stored before the entry is inserted, in commit.
		t.insert(f.key.Addr, uint8(f.key.Protocol), f.id, true)
	}
}

// insert has an entry written in commit; fresh says that it is not there yet.
func (t *transaction) insert(addr netip.AddrPort, proto uint8, value uint32, fresh bool) {
	if fresh {
		t.r.entries[table(addr)]++
	}
	if addr.Addr().Is4() {
		t.keys4 = append(t.keys4, maps.Frontend4Key(addr, proto))
		t.values4 = append(t.values4, value)
		return
	}
	t.keys6 = append(t.keys6, maps.Frontend6Key(addr, proto))
	t.values6 = append(t.values6, value)
}

// table is the index of the frontends table that an address is in.
func table(addr netip.AddrPort) int {
	if addr.Addr().Is4() {
		return 0
	}
	return 1
}

// deleteKey takes an entry away. Its place is used again one grace period later.
func (r *Reconciler) deleteKey(addr netip.AddrPort, proto uint8) {
	r.entries[table(addr)]--
	if addr.Addr().Is4() {
		if place, found := r.set.Frontends4.Remove(maps.Frontend4Key(addr, proto)); found {
			r.retire(retiree{kind: entry4, place: place})
		}
		return
	}
	if place, found := r.set.Frontends6.Remove(maps.Frontend6Key(addr, proto)); found {
		r.retire(retiree{kind: entry6, place: place})
	}
}

// removeFrontend takes the entry away; its state stays readable for programs
// that hold the id, until the grace period is over. Sockets that remember it
// learn by the generation that it is none any more.
func (r *Reconciler) removeFrontend(f *frontend) {
	delete(r.frontends, f.key)
	f.registered = false
	r.retire(retiree{kind: frontendID, id: f.id})
	r.deleteKey(f.key.Addr, uint8(f.key.Protocol))
	r.set.FrontendState.At(f.id).Generation++
}

// use counts a frontend at its address: filter bit and owner entry come with
// the first one.
func (r *Reconciler) use(t *transaction, key compile.FrontendKey, kind compile.Kind) {
	if kind == compile.NodePort {
		r.useNodePort(key.Addr.Port())
		return
	}
	u := r.address(key.Addr.Addr())
	before, had := u.ownerValue()
	u.frontends++
	if kind == compile.ClusterIP {
		u.clusterIPs++
	}
	if owner, has := u.ownerValue(); has && (!had || owner != before) {
		t.insertOwner(key.Addr.Addr(), owner, had)
	}
}

// insertOwner has the owner entry of an address written; had says that there
// is one. While tables are adopted it may be there, and right, already.
func (t *transaction) insertOwner(addr netip.Addr, owner uint32, had bool) {
	if t.r.found != nil && !had {
		stands, ok := t.r.found.owners[addr]
		delete(t.r.found.owners, addr)
		if ok && stands == owner {
			return
		}
		had = ok
	}
	t.insert(netip.AddrPortFrom(addr, 0), 0, owner, !had)
}

func (t *transaction) unuse(key compile.FrontendKey, kind compile.Kind) {
	t.later = append(t.later, func() error { return t.r.unuse(key, kind) })
}

func (r *Reconciler) unuse(key compile.FrontendKey, kind compile.Kind) error {
	if kind == compile.NodePort {
		r.unuseNodePort(key.Addr.Port())
		return nil
	}
	addr := key.Addr.Addr()
	u := r.address(addr)
	before, had := u.ownerValue()
	u.frontends--
	if kind == compile.ClusterIP {
		u.clusterIPs--
	}
	return r.ownerChanged(addr, u, before, had)
}

// ownerChanged brings the owner entry of an address up to date after uses went,
// and forgets an address without any.
func (r *Reconciler) ownerChanged(addr netip.Addr, u *addressUse, before uint32, had bool) error {
	owner, has := u.ownerValue()
	var err error
	switch {
	case had && !has:
		r.deleteKey(netip.AddrPortFrom(addr, 0), 0)
	case has && (!had || owner != before):
		if !had {
			r.entries[table(netip.AddrPortFrom(addr, 0))]++
		}
		err = r.putOwner(addr, owner)
	}
	if u.unused() {
		r.clearFilter(addr)
		delete(r.addresses, addr)
	}
	return err
}

func (r *Reconciler) putOwner(addr netip.Addr, owner uint32) error {
	t := &transaction{r: r}
	t.insert(netip.AddrPortFrom(addr, 0), 0, owner, false)
	return t.putAll()
}

// address returns the use of an address, whose filter bit is set from now on.
func (r *Reconciler) address(addr netip.Addr) *addressUse {
	u := r.addresses[addr]
	if u == nil {
		u = &addressUse{}
		r.addresses[addr] = u
		r.setFilter(addr)
	}
	return u
}

func (r *Reconciler) setFilter(addr netip.Addr) {
	bit := maps.FilterBit(addr, r.set.VIPFilter.Len()*64)
	r.filter[bit]++
	word := r.set.VIPFilter.LoadWord(bit/64, 0)
	if mask := uint64(1) << (bit % 64); word&mask == 0 {
		r.set.VIPFilter.StoreWord(bit/64, 0, word|mask)
	}
}

func (r *Reconciler) clearFilter(addr netip.Addr) {
	bit := maps.FilterBit(addr, r.set.VIPFilter.Len()*64)
	r.filter[bit]--
	if r.filter[bit] > 0 {
		return
	}
	delete(r.filter, bit)
	word := r.set.VIPFilter.LoadWord(bit/64, 0)
	r.set.VIPFilter.StoreWord(bit/64, 0, word&^(1<<(bit%64)))
}

// elsewhere tells the pseudo port that stands for the addresses of a Service
// that another proxy serves: connects to them pass.
func elsewhere(c *compile.Port) bool {
	return len(c.Frontends) > 0 && c.Frontends[0].Kind == compile.Elsewhere
}

func (t *transaction) stageElsewhere(c *compile.Change) error {
	p := t.r.ports[c.ID]
	if p == nil {
		p = &port{compiled: c.ID}
		t.r.ports[c.ID] = p
	}
	for _, f := range c.Port.Frontends {
		u := t.r.address(f.Addr.Addr())
		before, had := u.ownerValue()
		u.elsewhere++
		if !had || before != maps.AddressElsewhere {
			t.insertOwner(f.Addr.Addr(), maps.AddressElsewhere, had)
		}
	}
	for _, f := range p.declared {
		t.unuseElsewhere(f.Addr.Addr())
	}
	p.declared = c.Port.Frontends
	return nil
}

func (t *transaction) unuseElsewhere(addr netip.Addr) {
	t.later = append(t.later, func() error {
		u := t.r.address(addr)
		before, had := u.ownerValue()
		u.elsewhere--
		return t.r.ownerChanged(addr, u, before, had)
	})
}

// stageSources inserts the source ranges that are new, before a word makes
// programs look at them.
func (t *transaction) stageSources(p *port, c *compile.Port) error {
	for _, prefix := range c.SourceRanges {
		if slices.Contains(p.sources, prefix) {
			continue
		}
		if err := t.r.putSource(p, prefix); err != nil {
			return fmt.Errorf("write source range %s: %w", prefix, err)
		}
		p.sources = append(slices.Clip(p.sources), prefix)
	}
	return nil
}

// dropSources has those deleted that are not wanted any more, once no word makes
// programs look at them.
func (t *transaction) dropSources(p *port, c *compile.Port) {
	if slices.Equal(p.sources, c.SourceRanges) {
		return
	}
	var gone []netip.Prefix
	for _, prefix := range p.sources {
		if !slices.Contains(c.SourceRanges, prefix) {
			gone = append(gone, prefix)
		}
	}
	t.removeSources(p, gone)
	p.sources = c.SourceRanges
}

func (r *Reconciler) putSource(p *port, prefix netip.Prefix) error {
	if p.compiled.Family == service.IPv4 {
		return r.set.Sources4.Put(maps.Source4Key(p.id, prefix), 1)
	}
	return r.set.Sources6.Put(maps.Source6Key(p.id, prefix), 1)
}

func (t *transaction) removeSources(p *port, prefixes []netip.Prefix) {
	for _, prefix := range prefixes {
		t.later = append(t.later, func() error {
			if p.compiled.Family == service.IPv4 {
				return t.r.set.Sources4.Delete(maps.Source4Key(p.id, prefix))
			}
			return t.r.set.Sources6.Delete(maps.Source6Key(p.id, prefix))
		})
	}
}
