// SPDX-License-Identifier: Apache-2.0

package compile

import "slices"

// weigh judges all endpoints of a service port anew, publishes those that
// differ, and chooses the sets. It returns the positions that differ, valid
// until the next Apply.
//
// It is a function of the sources alone: nothing is counted up and down, so
// there is no history in which an increment could have been forgotten. The
// passes are over bytes; an endpoint costs a few nanoseconds.
func (c *Compiler) weigh(p *portState) []int32 {
	clear(p.facts)
	for i := range p.sources {
		merge(p.facts, p.sources[i].positions, p.sources[i].slice.facts)
	}
	c.limit(p)
	table := &c.verdicts[modeOf(p.facts)]
	start := len(c.scratch.touched)
	published := p.verdicts
	for pos, f := range p.facts {
		if v := table[f]; v != published[pos] {
			c.publish(p, int32(pos), v)
		}
	}
	touched := c.scratch.touched[start:len(c.scratch.touched):len(c.scratch.touched)]
	if len(touched) > 0 || p.fresh {
		c.choose(p)
	}
	return touched
}

// merge takes over the highest facts of each position.
func merge(into []facts, positions []int32, from []facts) {
	if len(into) == 0 {
		return // nothing in the slices is of this family
	}
	from = from[:len(positions)]
	for i, pos := range positions {
		if f := from[i]; f > into[pos] {
			into[pos] = f
		}
	}
}

// publish sets the verdict of a position. That of a fresh port need not be
// noted: all of it is new.
func (c *Compiler) publish(p *portState, pos int32, v verdict) {
	was := p.verdicts[pos]
	p.verdicts[pos] = v
	if v == 0 {
		p.addrs[pos] = address{}
		p.free++
		p.lowest = min(p.lowest, pos)
	}
	if v&^present == was&^present {
		return // known, but without a backend before and after
	}
	if !p.fresh {
		c.scratch.touched = append(c.scratch.touched, pos)
	}
}

// choose builds the sets from the verdicts: positions ascending, those of this
// node first.
func (c *Compiler) choose(p *portState) {
	cluster, head, local := 0, 0, 0
	for _, v := range p.verdicts {
		cluster += int(v / inCluster & 1)
		head += int(v / inCluster & (v / here) & 1)
		local += int(v / inLocal & 1)
	}
	p.Cluster = c.resize(p.Cluster, cluster)
	p.Local = c.resize(p.Local, local)
	first, rest, locals := 0, head, 0
	for pos, v := range p.verdicts {
		if v&inLocal != 0 {
			p.Local[locals] = int32(pos)
			locals++
		}
		switch v & (inCluster | here) {
		case inCluster | here:
			p.Cluster[first] = int32(pos)
			first++
		case inCluster:
			p.Cluster[rest] = int32(pos)
			rest++
		}
	}
	// The Cluster set takes what is usable on any node, so it is empty only if
	// there is nothing usable anywhere.
	p.Refuse = cluster == 0
}

// resize returns s with n elements, of any value.
func (c *Compiler) resize(s []int32, n int) []int32 {
	if cap(s) >= n {
		return s[:n]
	}
	if s == nil {
		return c.pools.positions.take(n, c.chunked)
	}
	return slices.Grow(s[:0], n)[:n]
}

// limit takes the backends beyond Config.MaxEndpoints away, as if those
// endpoints did not serve. Which ones is a matter of what they are, not of
// when they came: ready before not ready, this node's before others', then by
// address.
func (c *Compiler) limit(p *portState) {
	if len(p.facts) <= c.max {
		p.setExcess(0)
		return
	}
	rank := c.scratch.ranking[:0]
	for pos, f := range p.facts {
		if f.live() {
			rank = append(rank, int32(pos))
		}
	}
	c.scratch.ranking = rank
	if len(rank) <= c.max {
		p.setExcess(0)
		return
	}
	slices.SortFunc(rank, func(a, b int32) int {
		const class = ready | onNode
		if d := int(p.facts[b]&class) - int(p.facts[a]&class); d != 0 {
			return d
		}
		return p.addrs[a].compare(p.addrs[b])
	})
	for _, pos := range rank[c.max:] {
		p.facts[pos] = known
	}
	p.setExcess(len(rank))
}

func (p *portState) setExcess(n int) {
	if p.excess != n {
		p.excess = n
		p.service.complain = true
	}
}
