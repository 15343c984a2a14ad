// SPDX-License-Identifier: Apache-2.0

package reconcile

import "math/bits"

// ids hands out numbers below a limit. Numbers that come back are handed out
// again last in, first out: the memory behind them is warm.
type ids struct {
	next  uint32
	limit uint32
	free  []uint32
	used  uint32 // handed out and not yet given back
}

func (a *ids) take() (uint32, bool) {
	if n := len(a.free); n > 0 {
		id := a.free[n-1]
		a.free = a.free[:n-1]
		a.used++
		return id, true
	}
	if a.next >= a.limit {
		return 0, false
	}
	a.next++
	a.used++
	return a.next - 1, true
}

func (a *ids) give(id uint32) {
	a.free = append(a.free, id)
	a.used--
}

// span is a range of slots: count of them in use, in a block of a power of two.
type span struct {
	base, count uint32
}

// class is the exponent of the block that holds count slots.
func class(count uint32) int { return bits.Len32(count - 1) }

// spans hands out blocks of slots. Blocks of a size are used again for that
// size, or split for smaller ones; they are not merged, for the sizes in use
// change slowly and growth is cheap.
type spans struct {
	next  uint32
	limit uint32
	free  [25][]uint32 // by class
	used  uint32       // slots in blocks handed out
}

func (a *spans) take(count uint32) (span, bool) {
	c := class(count)
	base, ok := a.block(c)
	if ok {
		a.used += 1 << c
	}
	return span{base, count}, ok
}

func (a *spans) block(c int) (uint32, bool) {
	if n := len(a.free[c]); n > 0 {
		base := a.free[c][n-1]
		a.free[c] = a.free[c][:n-1]
		return base, true
	}
	if size := uint32(1) << c; a.limit-a.next >= size {
		a.next += size
		return a.next - size, true
	}
	for larger := c + 1; larger < len(a.free); larger++ {
		if len(a.free[larger]) == 0 {
			continue
		}
		base, _ := a.block(larger)
		for half := larger - 1; half >= c; half-- {
			a.free[half] = append(a.free[half], base+1<<half)
		}
		return base, true
	}
	return 0, false
}

func (a *spans) give(s span) {
	c := class(s.count)
	a.free[c] = append(a.free[c], s.base)
	a.used -= 1 << c
}

// release makes the slots from low to high, which nobody uses, blocks to be
// handed out; used is not touched.
func (a *spans) release(low, high uint32) {
	for low < high {
		c := min(bits.Len32(high-low)-1, len(a.free)-1)
		a.free[c] = append(a.free[c], low)
		low += 1 << c
	}
}
