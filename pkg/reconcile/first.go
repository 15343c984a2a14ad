// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// first is what a first load takes, so that tables, Go maps and memory are made
// once and at their size.
type first struct {
	ports, slots           int
	frontends4, frontends6 int
	backends4, backends6   int
}

func measure(changes []compile.Change) (need first) {
	for _, c := range changes {
		if c.Port == nil {
			continue
		}
		need.ports++
		for _, set := range [][]int32{c.Port.Cluster, c.Port.Local} {
			if n := c.Port.Slots(len(set)); n > 0 {
				need.slots += 1 << class(n)
			}
		}
		if c.ID.Family == service.IPv4 {
			need.frontends4 += len(c.Port.Frontends)
			need.backends4 += c.Port.Positions()
		} else {
			need.frontends6 += len(c.Port.Frontends)
			need.backends6 += c.Port.Positions()
		}
	}
	return need
}

func (n *first) frontends() int { return n.frontends4 + n.frontends6 }

// create makes tables that fit.
func (r *Reconciler) create(need *first) error {
	draft := r.draft
	r.draft = nil
	if draft == nil { // used up by an Apply that failed
		var err error
		if draft, err = maps.NewDraft(); err != nil {
			return err
		}
	}
	// Every frontend may bring an owner entry for its address.
	set, err := draft.Create(maps.Sizes{
		Frontends4: capacity(2 * need.frontends4), Frontends6: capacity(2 * need.frontends6),
		FrontendState: capacity(need.frontends()),
		Slots:         capacity(max(need.slots, 2*smallest)),
		Backends4:     capacity(max(need.backends4, 2*smallest)), Backends6: capacity(max(need.backends6, 2*smallest)),
		FilterBits: filterBits(need.frontends()),
		NodeAddrs4: smallest, NodeAddrs6: smallest,
		ServiceNames: capacity(need.ports),
	})
	if err != nil {
		return err
	}
	r.set = set
	r.setLimits()
	return nil
}

// makeRoom has Go maps, slabs and t hold a first load.
func (t *transaction) makeRoom(need *first) {
	r := t.r
	r.ports = sized(r.ports, need.ports)
	r.frontends = sized(r.frontends, need.frontends())
	r.addresses = sized(r.addresses, need.frontends())
	r.filter = sized(r.filter, need.frontends())
	r.slabs = slabs{
		ports:     make([]port, 0, need.ports),
		words:     make([]uint64, 0, need.backends4+need.backends6),
		frontends: make([]frontend, 0, need.frontends()),
		refs:      make([]*frontend, 0, need.frontends()),
	}
	t.names = make([]uint32, 0, min(need.ports, enough))
	t.nameValues = make([]bpf.LbServiceName, 0, min(need.ports, enough))
}

// sized is m, with room for n when it is empty.
func sized[K comparable, V any](m map[K]V, n int) map[K]V {
	if len(m) > 0 {
		return m
	}
	return make(map[K]V, n)
}

// slabs hold what a first load makes of each kind. Later, when little is made
// at a time, they are empty, and everything is allocated by itself: no part of
// a slab is freed before all of it is.
type slabs struct {
	ports     []port
	words     []uint64
	frontends []frontend
	refs      []*frontend
}

// carve takes n zero elements off a slab, or new ones when it is used up.
func carve[T any](slab *[]T, n int) []T {
	at := len(*slab)
	if at+n > cap(*slab) {
		return make([]T, n)
	}
	*slab = (*slab)[:at+n]
	return (*slab)[at : at+n : at+n]
}
