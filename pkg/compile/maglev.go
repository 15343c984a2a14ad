// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// Member is one endpoint of a Maglev table.
type Member struct {
	Addr netip.AddrPort
	// Weight is its share against the others'; 0 counts as 1.
	Weight uint32
}

// MaglevSizes are the sizes that a table may have: primes, so that a step of
// any length visits every slot, each just below a power of two, so that a
// table fills the block of slots that it lies in.
var MaglevSizes = []uint32{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071}

// DefaultMaglevSize keeps 163 endpoints within 1 % of their share.
const DefaultMaglevSize = 16381

// Maglev fills tables. It keeps its memory from one to the next and is for one
// goroutine; the zero Maglev is ready.
type Maglev struct {
	table, order []int32
	taken        []uint64
	turns        []turn
	ranks        []int32
	last         []uint32 // the slots that are free, when they are few
}

// turn is where one member stands while the table is filled.
type turn struct {
	at, step uint32
	quota    uint32 // slots still to get
	weight   uint32
	credit   uint32
	inverse  uint64 // of step; 0 until needed
}

// Fill returns a table of size slots, one of MaglevSizes, that holds indexes
// into members: each as often as its weight says, to a slot. The table depends
// on the set of members and not on their order, so every node of a cluster has
// the same; and little of it changes when a member comes or goes. It is valid
// until the next Fill. Maglev: Eisenbud et al., NSDI 2016, section 3.4;
// weights by the largest remainder.
//
// There must be members, and no more than size.
func (m *Maglev) Fill(size uint32, members []Member) []int32 {
	n := len(members)
	m.order = identity(m.order, n)
	slices.SortFunc(m.order, func(a, b int32) int { return members[a].Addr.Compare(members[b].Addr) })
	m.turns = slices.Grow(m.turns[:0], n)[:n]
	heaviest := uint32(1)
	for i, at := range m.order {
		high, low := mixAddress(members[at].Addr)
		weight := max(1, members[at].Weight)
		heaviest = max(heaviest, weight)
		m.turns[i] = turn{at: uint32(high % uint64(size)), step: uint32(low%uint64(size-1)) + 1, weight: weight}
	}
	m.share(size)
	m.table = slices.Grow(m.table[:0], int(size))[:size]
	m.taken = slices.Grow(m.taken[:0], int(size+63)/64)[:(size+63)/64]
	clear(m.taken)
	m.last = m.last[:0]
	for left := size; left > 0; {
		for i := range m.turns {
			t := &m.turns[i]
			// The heaviest takes a slot each turn, half its weight every other.
			if t.credit += t.weight; t.credit < heaviest || t.quota == 0 {
				continue
			}
			t.credit -= heaviest
			t.quota--
			if left > few {
				m.table[t.next(m.taken, size)] = m.order[i]
			} else {
				m.table[m.nearest(t, size)] = m.order[i]
			}
			left--
		}
	}
	return m.table
}

// few is the number of free slots at which looking at each of them is cheaper
// than stepping through taken ones until one is hit.
const few = 192

// nearest is next when few slots are free: of those it takes the one that the
// member would step on first.
func (m *Maglev) nearest(t *turn, size uint32) uint32 {
	if len(m.last) == 0 {
		for at := range size {
			if m.taken[at/64]>>(at%64)&1 == 0 {
				m.last = append(m.last, at)
			}
		}
	}
	if t.inverse == 0 {
		t.inverse = inverse(t.step, size)
	}
	best, steps := 0, uint64(size)
	reciprocal := ^uint64(0)/uint64(size) + 1
	for i, at := range m.last {
		// From t.at it is so many steps: (at - t.at) / t.step, modulo size. The
		// product has at most 36 bits, for which this remainder is exact.
		product := uint64(at+size-t.at) * t.inverse
		quotient, _ := bits.Mul64(product, reciprocal)
		if n := product - quotient*uint64(size); n < steps {
			best, steps = i, n
		}
	}
	at := m.last[best]
	m.last[best] = m.last[len(m.last)-1]
	m.last = m.last[:len(m.last)-1]
	if t.at = at + t.step; t.at >= size {
		t.at -= size
	}
	return at
}

// inverse of x modulo a prime (Fermat): x to the power of prime-2.
func inverse(x, prime uint32) uint64 {
	result, base := uint64(1), uint64(x)
	for e := prime - 2; e > 0; e >>= 1 {
		if e&1 != 0 {
			result = result * base % uint64(prime)
		}
		base = base * base % uint64(prime)
	}
	return result
}

// next takes the member's favourite among the slots that are free.
func (t *turn) next(taken []uint64, size uint32) uint32 {
	at := t.at
	for {
		here := at
		// Modulo size without a branch, which nobody could predict.
		at += t.step - size
		at += size & uint32(int32(at)>>31)
		if word, bit := &taken[here/64], uint64(1)<<(here%64); *word&bit == 0 {
			*word |= bit
			t.at = at
			return here
		}
	}
}

// share gives every member its quota: the whole part of its share, at least
// one, and one more to those with the largest remainders.
func (m *Maglev) share(size uint32) {
	total := uint64(0)
	for i := range m.turns {
		total += uint64(m.turns[i].weight)
	}
	left := int64(size)
	m.ranks = identity(m.ranks, len(m.turns))
	for i := range m.turns {
		t := &m.turns[i]
		share := uint64(size) * uint64(t.weight)
		t.quota = uint32(share / total)
		t.credit = uint32(share % total) // until all are known
		if t.quota == 0 {
			t.quota, t.credit = 1, 0
		}
		left -= int64(t.quota)
	}
	slices.SortStableFunc(m.ranks, func(a, b int32) int { return cmp.Compare(m.turns[b].credit, m.turns[a].credit) })
	for i := 0; left > 0; i = (i + 1) % len(m.ranks) {
		m.turns[m.ranks[i]].quota++
		left--
	}
	// Members that got their one slot against their share: the richest pay.
	for ; left < 0; left++ {
		richest := slices.MaxFunc(m.ranks, func(a, b int32) int { return cmp.Compare(m.turns[a].quota, m.turns[b].quota) })
		m.turns[richest].quota--
	}
	for i := range m.turns {
		m.turns[i].credit = 0
	}
}

func identity(s []int32, n int) []int32 {
	s = slices.Grow(s[:0], n)[:n]
	for i := range s {
		s[i] = int32(i)
	}
	return s
}

// mixAddress spreads an address over two words. It is part of what every node
// has to agree on: it must never change.
func mixAddress(addr netip.AddrPort) (high, low uint64) {
	a := addressOf(addr.Addr(), addr.Port())
	high = mix(a.high ^ mix(a.low^mix(uint64(a.port))))
	return high, mix(high)
}

// mix is the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// CheckMaglevSize tells what is wrong with a table size, and what sizes there
// are.
func CheckMaglevSize(size uint32) error {
	if slices.Contains(MaglevSizes, size) {
		return nil
	}
	return fmt.Errorf("%d is no size of a Maglev table: use one of %v", size, MaglevSizes)
}
