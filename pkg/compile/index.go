// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"math/bits"
)

// index finds the position of an address in one service port. No port keeps
// one: a few look-ups are a scan of an array, and only for many in a large
// port a hash table is built, in memory that the next port uses again.
type index struct {
	seed    uint64
	table   []int32 // position + 1; 0 is empty; the length is a power of two
	used    int
	built   bool
	lookups int
	port    *portState
}

const (
	// scanned look-ups are made before a table is built.
	scanned = 4
	// scanLen is the number of positions up to which scanning always wins.
	scanLen = 32
)

// reset forgets the port that the index was for.
func (x *index) reset() { x.built, x.lookups, x.port = false, 0, nil }

// find returns the position of addr in p, or -1. Between two resets it is
// asked about one port.
func (x *index) find(p *portState, addr address) int32 {
	if !x.built {
		x.lookups++
		if x.lookups <= scanned || len(p.addrs) <= scanLen {
			for i := range p.addrs {
				if p.addrs[i] == addr {
					return int32(i)
				}
			}
			return -1
		}
		x.build(p, 2*len(p.addrs))
	}
	for at := x.slot(addr); ; at++ {
		pos := x.table[at&(len(x.table)-1)] - 1
		if pos < 0 || p.addrs[pos] == addr {
			return pos
		}
	}
}

// add tells of a position that was taken since the last find.
func (x *index) add(addr address, pos int32) {
	if !x.built {
		return
	}
	if x.used++; x.used*2 > len(x.table) {
		x.build(x.port, 2*x.used)
		return
	}
	x.insert(addr, pos)
}

// build fills a table that has room for twice the number of positions.
func (x *index) build(p *portState, room int) {
	size := 1 << bits.Len(uint(2*room))
	if cap(x.table) < size {
		x.table = make([]int32, size)
	}
	x.table = x.table[:size]
	clear(x.table)
	x.built, x.port, x.used = true, p, len(p.addrs)
	for i, addr := range p.addrs {
		if addr != (address{}) {
			x.insert(addr, int32(i))
		}
	}
}

func (x *index) insert(addr address, pos int32) {
	mask := len(x.table) - 1
	at := x.slot(addr) & mask
	for x.table[at] != 0 {
		at = (at + 1) & mask
	}
	x.table[at] = pos + 1
}

// slot is where the search for addr begins, before masking. It is keyed, so
// that nobody who writes slices by hand can make every address meet.
func (x *index) slot(addr address) int {
	hi := addr.high ^ x.seed
	lo := addr.low ^ uint64(addr.port)<<48 ^ bits.RotateLeft64(x.seed, 32)
	a, z := bits.Mul64(hi|1, lo)
	a, z = bits.Mul64(a^z^x.seed, 0x9e3779b97f4a7c15)
	return int((a ^ z) >> 1)
}
