// SPDX-License-Identifier: Apache-2.0

package compile

// bulk is the number of objects in an Update above which memory is taken from
// chunks. A first load of thousands of Services then makes thousands of
// allocations fewer. In a small update a chunk would outlive what it was made
// for, so there each array is its own.
const bulk = 256

// chunkLen is the number of elements in a chunk.
const chunkLen = 4096

// pool hands out arrays of one type.
type pool[T any] struct {
	chunk []T
}

// take returns an array of n zero elements that nobody else has, with no room
// to grow into its neighbour.
func (p *pool[T]) take(n int, chunked bool) []T {
	if !chunked || n > chunkLen/4 {
		return make([]T, n)
	}
	if len(p.chunk) < n {
		p.chunk = make([]T, chunkLen)
	}
	t := p.chunk[:n:n]
	p.chunk = p.chunk[n:]
	return t
}

// copyOf is take, filled.
func (p *pool[T]) copyOf(from []T, chunked bool) []T {
	t := p.take(len(from), chunked)
	copy(t, from)
	return t
}

// pools are the arrays that a service and its ports are made of.
type pools struct {
	services  pool[serviceState]
	slices    pool[sliceState]
	ports     pool[portState]
	portRefs  pool[*portState]
	sliceRefs pool[*sliceState]
	sources   pool[source]
	frontends pool[Frontend]
	addrs     pool[address]
	facts     pool[facts]
	verdicts  pool[verdict]
	positions pool[int32]
}

// scratch is what one Apply works on and the next one overwrites.
type scratch struct {
	dirty     []*serviceState
	changes   []Change
	touched   []int32
	ports     []*portState
	frontends []Frontend
	facts     []facts
	origins   []int32
	positions []int32
	ranking   []int32
	conflicts []conflict
}

func (s *scratch) reset() {
	clear(s.dirty)
	clear(s.ports)
	s.dirty, s.ports = s.dirty[:0], s.ports[:0]
	s.changes, s.touched = s.changes[:0], s.touched[:0]
	s.origins = s.origins[:0]
}
