// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"math/bits"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/service"
)

// Tables start at twice what they have to hold, and double at four fifths:
// steady growth costs one switch of programs per doubling. Sizes are no powers
// of two: rounding up to one would be paid in memory, and the first load waits
// for the kernel to clear it.
const (
	smallest     = 1024
	fullPercent  = 80
	filterFactor = 32 // bits of vip_filter per address: 3 % set
	filterFull   = 8  // fewer bits per address than this: grow
)

func capacity(need int) uint32 { return roundUp(uint32(2 * need)) }

// roundUp makes a size a multiple of the smallest, which is whole pages of any
// entries.
func roundUp(entries uint32) uint32 { return max(1, (entries+smallest-1)/smallest) * smallest }

// filterBits is the size of vip_filter for so many addresses.
func filterBits(addresses int) uint32 {
	return max(1<<16, uint32(1)<<bits.Len32(uint32(filterFactor*addresses)))
}

func (r *Reconciler) setLimits() {
	s := r.set.Sizes()
	r.portIDs.limit = s.ServiceNames
	r.frontendIDs.limit = s.FrontendState
	r.backends4.limit, r.backends6.limit = s.Backends4, s.Backends6
	r.slots.limit = s.Slots
}

// Usage is how full a table is.
type Usage struct {
	Table    string `json:"table"`
	Used     uint32 `json:"used"`
	Capacity uint32 `json:"capacity"`
	// Resizes counts how often it has grown since the agent started.
	Resizes uint64 `json:"resizes"`
}

// Stats returns how full the tables that grow are. Entries in quarantine count
// as used.
func (r *Reconciler) Stats() []Usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set == nil {
		return nil
	}
	return r.usage()
}

func (r *Reconciler) usage() []Usage {
	s := r.set.Sizes()
	out := []Usage{
		{Table: maps.Frontends4, Used: r.entries[0], Capacity: s.Frontends4},
		{Table: maps.Frontends6, Used: r.entries[1], Capacity: s.Frontends6},
		{Table: maps.FrontendState, Used: r.frontendIDs.used, Capacity: s.FrontendState},
		{Table: maps.Slots, Used: r.slots.used, Capacity: s.Slots},
		{Table: maps.Backends4, Used: r.backends4.used, Capacity: s.Backends4},
		{Table: maps.Backends6, Used: r.backends6.used, Capacity: s.Backends6},
		{Table: maps.NodeAddrs4, Used: r.node.count(service.IPv4), Capacity: s.NodeAddrs4},
		{Table: maps.NodeAddrs6, Used: r.node.count(service.IPv6), Capacity: s.NodeAddrs6},
		{Table: maps.ServiceNames, Used: r.portIDs.used, Capacity: s.ServiceNames},
	}
	for i := range out {
		out[i].Resizes = r.resized[out[i].Table]
	}
	return out
}

// growIfNeeded doubles what is four fifths full, all in one switch; and what is
// so small beside what waits for its grace period that a change had to wait,
// too.
func (r *Reconciler) growIfNeeded() error {
	want := r.set.Sizes()
	grown := false
	for _, u := range r.usage() {
		if uint64(u.Used)*100 >= uint64(u.Capacity)*fullPercent || r.cramped[u.Table] {
			setSize(&want, u.Table, u.Capacity*2)
			r.resized[u.Table]++
			grown = true
		}
	}
	clear(r.cramped)
	if uint32(len(r.addresses))*filterFull > want.FilterBits {
		want.FilterBits = filterBits(len(r.addresses))
		r.resized[maps.VIPFilter]++
		grown = true
	}
	if !grown {
		return nil
	}
	return r.growTo(want)
}

// grow makes one table as large as asked, for a change that needs it now.
func (r *Reconciler) grow(table string, entries uint32) error {
	want := r.set.Sizes()
	setSize(&want, table, roundUp(entries))
	r.resized[table]++
	return r.growTo(want)
}

// growTo copies the tables into larger ones and switches the programs. Nobody
// writes meanwhile (the lock is held), so both copies are right at every
// moment of the switch.
func (r *Reconciler) growTo(want maps.Sizes) error {
	r.inserting.Wait()
	grown, err := r.set.Grow(want)
	if err != nil {
		return err
	}
	old, filter := r.set, r.filter
	r.set = grown
	if grown.VIPFilter.Len() != old.VIPFilter.Len() {
		r.refillFilter()
	}
	if r.attached {
		if err := r.loadPrograms(grown); err != nil {
			r.set, r.filter = old, filter
			grown.Close()
			return fmt.Errorf("switch to larger tables: %w", err)
		}
	}
	r.setLimits()
	// Programs that run on the old tables hold references of their own.
	old.Close()
	return nil
}

func (r *Reconciler) refillFilter() {
	r.filter = make(map[uint32]uint32, len(r.addresses))
	for addr := range r.addresses {
		r.setFilter(addr)
	}
}

func setSize(s *maps.Sizes, table string, entries uint32) {
	switch table {
	case maps.Frontends4:
		s.Frontends4 = entries
	case maps.Frontends6:
		s.Frontends6 = entries
	case maps.FrontendState:
		s.FrontendState = entries
	case maps.Slots:
		s.Slots = entries
	case maps.Backends4:
		s.Backends4 = entries
	case maps.Backends6:
		s.Backends6 = entries
	case maps.NodeAddrs4:
		s.NodeAddrs4 = entries
	case maps.NodeAddrs6:
		s.NodeAddrs6 = entries
	case maps.ServiceNames:
		s.ServiceNames = entries
	}
}

// crowded lists the tables looked up by key that cannot hold what is about to be
// inserted, and how many entries each would have.
func (t *transaction) crowded() map[string]uint32 {
	r, have := t.r, t.r.set.Sizes()
	var short map[string]uint32
	for _, need := range []struct {
		table             string
		entries, capacity uint32
	}{
		{maps.Frontends4, r.entries[0], have.Frontends4},
		{maps.Frontends6, r.entries[1], have.Frontends6},
		{maps.ServiceNames, r.portIDs.used, have.ServiceNames},
	} {
		if need.entries > need.capacity {
			if short == nil {
				short = map[string]uint32{}
			}
			short[need.table] = need.entries
		}
	}
	return short
}

// relieve grows the tables that are crowded.
func (t *transaction) relieve() error {
	short := t.crowded()
	if len(short) == 0 {
		return nil
	}
	want := t.r.set.Sizes()
	for table, entries := range short {
		setSize(&want, table, capacity(int(entries)))
		t.r.resized[table]++
	}
	return t.r.growTo(want)
}
