// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	"portolan.dev/portolan/pkg/service"
)

// sliceState is one EndpointSlice as it was compiled last, and what this Apply
// does to it.
type sliceState struct {
	object  *service.EndpointSlice
	service *serviceState
	// facts of each endpoint, by its index in the object.
	facts []facts
	// nodeless: some endpoint has no node. Which one is not in the facts.
	nodeless bool

	// next is the object that this Apply brings, nil to leave; only while
	// pending.
	next    *service.EndpointSlice
	pending bool
	// What this Apply did, for the service ports to follow.
	edit edit
	// origins say where each endpoint stood in the previous object, -1 for
	// unknown; only with rearranged.
	origins []int32
}

// edit says in which ways a slice differs from before.
type edit uint8

const (
	restated   edit = 1 << iota // facts of some endpoint differ
	rearranged                  // endpoints came, went or moved
	renumbered                  // its ports differ
	left                        // the slice is gone
)

// advance takes over the pending object of a slice and notes how it differs.
// The work is one pass over the endpoints, old beside new: nearly always they
// are the same addresses in the same order.
func (c *Compiler) advance(sl *sliceState) edit {
	old, next := sl.object, sl.next
	sl.next, sl.pending, sl.origins = nil, false, nil
	if next == nil {
		sl.edit = left
		return sl.edit
	}
	sl.object, sl.edit = next, 0
	if old == nil || !slices.Equal(old.Ports, next.Ports) {
		sl.edit |= renumbered
	}
	// Nothing is carried over from no object.
	if old != nil && !sameAddresses(old.Endpoints, next.Endpoints) {
		sl.edit |= rearranged
		sl.origins = c.originsOf(old.Endpoints, next.Endpoints)
	}
	if c.restate(sl) {
		sl.edit |= restated
	}
	return sl.edit
}

// restate computes the facts of the slice's endpoints and tells whether any
// differ from before.
func (c *Compiler) restate(sl *sliceState) bool {
	endpoints := sl.object.Endpoints
	was := sl.nodeless
	sl.nodeless = slices.ContainsFunc(endpoints, nodeless)
	if len(sl.facts) != len(endpoints) {
		if cap(sl.facts) < len(endpoints) {
			sl.facts = c.pools.facts.take(len(endpoints), c.chunked)
		}
		sl.facts = sl.facts[:len(endpoints)]
		for i := range endpoints {
			sl.facts[i] = c.factsOf(&endpoints[i], sl.object.Family)
		}
		return true
	}
	differ := was || sl.nodeless
	for i := range endpoints {
		f := c.factsOf(&endpoints[i], sl.object.Family)
		differ = differ || f != sl.facts[i]
		sl.facts[i] = f
	}
	return differ
}

func sameAddresses(a, b []service.Endpoint) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Addr != b[i].Addr {
			return false
		}
	}
	return true
}

// reach is how many endpoints in a row may have gone for originsOf to find the
// next one by itself.
const reach = 8

// originsOf says for each endpoint where the same address stood before, or -1.
// It follows what keeps the order, as the EndpointSlice controller does; what
// it misses is looked up by address, which is as right and only slower.
func (c *Compiler) originsOf(was, now []service.Endpoint) []int32 {
	start := len(c.scratch.origins)
	c.scratch.origins = slices.Grow(c.scratch.origins, len(now))
	at := 0
	for j := range now {
		origin := int32(-1)
		for i := at; i < len(was) && i <= at+reach; i++ {
			if was[i].Addr == now[j].Addr {
				origin, at = int32(i), i+1
				break
			}
		}
		c.scratch.origins = append(c.scratch.origins, origin)
	}
	return c.scratch.origins[start:len(c.scratch.origins):len(c.scratch.origins)]
}
