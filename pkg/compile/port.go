// SPDX-License-Identifier: Apache-2.0

package compile

import "slices"

// portState is a service port with what it takes to compile it again. The
// arrays by position grow together.
type portState struct {
	Port
	service *serviceState
	// wanted are all the frontends of the service port, also those that an
	// older claimant has; Port.Frontends are those it got.
	wanted []Frontend
	// sources are the slices that serve this port.
	sources []source

	facts  []facts // by position, of all slices together; 0 is a free position
	free   int     // number of free positions
	lowest int32   // no position below is free

	// excess is the number of live endpoints when there are too many.
	excess int
	// conflicts are the wanted frontends that others have.
	conflicts []conflict

	fresh bool // has no Change yet
	all   bool // the next Change says All
	kept  bool // still there; only while its Service is reshaped
	// reassign: who has its frontends must be looked up. contested: some of
	// them have, or had, rivals.
	reassign, contested bool
	listed, gone        bool    // in this Apply's list; not a port any more
	touched             []int32 // what weigh found, until the Change is made
}

// source is one slice's contribution to a service port: each endpoint's
// position, by its index in the slice. A slice that carries the port's name
// twice is two sources.
type source struct {
	slice     *sliceState
	number    uint16
	positions []int32
}

// follow brings the sources of a service port in line with its slices. A
// position is given back only by weigh, after every slice had its say: an
// endpoint that moves from one slice to another keeps it.
func (c *Compiler) follow(p *portState) {
	c.index.reset()
	if p.fresh {
		c.reserve(p)
	}
	for _, sl := range p.service.slices {
		if !sl.concerns(p) {
			continue
		}
		if p.fresh && sl.edit != left || sl.edit&renumbered != 0 {
			c.followPorts(p, sl)
		} else if sl.edit == left {
			p.sources = slices.DeleteFunc(p.sources, func(s source) bool { return s.slice == sl })
		} else if sl.edit&rearranged != 0 {
			for i := range p.sources {
				if p.sources[i].slice == sl {
					c.followEndpoints(p, &p.sources[i])
				}
			}
		}
	}
}

// concerns tells whether the slice's endpoints may serve the port at all.
func (sl *sliceState) concerns(p *portState) bool {
	return sl.object != nil && !sl.object.Headless && sl.object.Family == p.ID.Family
}

// serves tells whether the slice has number under the name of the port.
func (sl *sliceState) serves(id *PortID, number uint16) bool {
	for i := range sl.object.Ports {
		sp := &sl.object.Ports[i]
		if sp.Port == number && sp.Protocol == id.Protocol && sp.Name == id.Port {
			return true
		}
	}
	return false
}

// followPorts matches the sources of one slice with its ports.
func (c *Compiler) followPorts(p *portState, sl *sliceState) {
	known := 0
	for _, s := range p.sources {
		if s.slice == sl && !sl.serves(&p.ID, s.number) {
			continue
		}
		if s.slice == sl && sl.edit&rearranged != 0 {
			c.followEndpoints(p, &s)
		}
		p.sources[known] = s
		known++
	}
	clear(p.sources[known:])
	p.sources = p.sources[:known]
	for i := range sl.object.Ports {
		sp := &sl.object.Ports[i]
		if sp.Protocol != p.ID.Protocol || sp.Name != p.ID.Port || p.hasSource(sl, sp.Port) {
			continue
		}
		s := source{slice: sl, number: sp.Port, positions: c.pools.positions.take(len(sl.facts), c.chunked)}
		for j := range s.positions {
			s.positions[j] = c.place(p, sl, j, sp.Port)
		}
		p.sources = append(p.sources, s)
	}
}

func (p *portState) hasSource(sl *sliceState, number uint16) bool {
	// A slice's sources were added last when they are new, and p.sources may
	// be long: look from the end.
	for i := len(p.sources) - 1; i >= 0; i-- {
		if p.sources[i].slice == sl && p.sources[i].number == number {
			return true
		}
	}
	return false
}

// followEndpoints carries positions over to the slice's new order.
func (c *Compiler) followEndpoints(p *portState, s *source) {
	now := c.scratch.positions[:0]
	for j, origin := range s.slice.origins {
		if origin >= 0 {
			now = append(now, s.positions[origin])
		} else {
			now = append(now, c.place(p, s.slice, j, s.number))
		}
	}
	c.scratch.positions = now
	s.positions = append(s.positions[:0], now...)
}

// reserve takes the arrays of a new service port at the size they will have.
func (c *Compiler) reserve(p *portState) {
	endpoints, sources := 0, 0
	for _, sl := range p.service.slices {
		if sl.edit == left || !sl.concerns(p) {
			continue
		}
		for i := range sl.object.Ports {
			if sp := &sl.object.Ports[i]; sp.Protocol == p.ID.Protocol && sp.Name == p.ID.Port {
				endpoints += len(sl.facts)
				sources++
			}
		}
	}
	p.sources = c.pools.sources.take(sources, c.chunked)[:0]
	p.addrs = c.pools.addrs.take(endpoints, c.chunked)[:0]
	p.facts = c.pools.facts.take(endpoints, c.chunked)[:0]
	p.verdicts = c.pools.verdicts.take(endpoints, c.chunked)[:0]
}

// place returns the position of an endpoint, a new one if it has none.
func (c *Compiler) place(p *portState, sl *sliceState, at int, number uint16) int32 {
	if sl.facts[at] == 0 {
		return 0 // not there: 0 is the highest of nothing, at any position
	}
	addr := addressOf(sl.object.Endpoints[at].Addr, number)
	if pos := c.index.find(p, addr); pos >= 0 {
		return pos
	}
	pos := p.take(addr)
	c.index.add(addr, pos)
	return pos
}

// take gives the lowest free position to addr.
func (p *portState) take(addr address) int32 {
	if p.free > 0 {
		for p.facts[p.lowest] != 0 {
			p.lowest++
		}
		p.free--
		p.addrs[p.lowest], p.facts[p.lowest] = addr, known
		return p.lowest
	}
	p.addrs = append(p.addrs, addr)
	p.facts = append(p.facts, known)
	p.verdicts = append(p.verdicts, 0)
	return int32(len(p.addrs) - 1)
}
