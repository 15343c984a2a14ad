// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"
	"strings"
)

// claims says which service port has which frontend. Two Services that name
// the same address and port cannot both have it: the older keeps it, so that a
// new object never takes traffic away from a running one.
type claims struct {
	owner map[FrontendKey]*portState
	// rivals are all claimants of a key that several claim, in any order.
	rivals map[FrontendKey][]*portState
	// disturbed keys get their owner settled once every claim of this Apply is
	// in: until then owner is just one of the claimants.
	disturbed []FrontendKey
}

func (cl *claims) add(key FrontendKey, p *portState) {
	owner, taken := cl.owner[key]
	if !taken {
		cl.owner[key] = p
		return
	}
	rivals := cl.rivals[key]
	if rivals == nil {
		rivals = []*portState{owner}
	}
	cl.rivals[key] = append(rivals, p)
	cl.disturbed = append(cl.disturbed, key)
}

func (cl *claims) remove(key FrontendKey, p *portState) {
	rivals, contested := cl.rivals[key]
	if !contested {
		delete(cl.owner, key)
		return
	}
	rivals = slices.DeleteFunc(rivals, func(r *portState) bool { return r == p })
	cl.owner[key] = rivals[0]
	cl.rivals[key] = rivals
	if len(rivals) == 1 {
		delete(cl.rivals, key)
	}
	cl.disturbed = append(cl.disturbed, key)
}

// disturb has the contested keys among p's settled again: its age changed.
func (cl *claims) disturb(p *portState) {
	for i := range p.wanted {
		if _, contested := cl.rivals[p.wanted[i].FrontendKey]; contested {
			cl.disturbed = append(cl.disturbed, p.wanted[i].FrontendKey)
		}
	}
}

// settle decides the disturbed keys and calls affected for every service port
// that may have won or lost one, or whose winner is another.
func (cl *claims) settle(affected func(*portState)) {
	for _, key := range cl.disturbed {
		if rivals, contested := cl.rivals[key]; contested {
			cl.owner[key] = slices.MinFunc(rivals, elder)
			for _, p := range rivals {
				affected(p)
			}
		} else if p, ok := cl.owner[key]; ok {
			affected(p)
		}
	}
	cl.disturbed = cl.disturbed[:0]
}

// elder orders the claimants of one frontend by precedence: the older Service,
// then the first by name, then the first port by name.
func elder(a, b *portState) int {
	if d := a.service.object.Created.Compare(b.service.object.Created); d != 0 {
		return d
	}
	if d := strings.Compare(a.ID.Service.Namespace, b.ID.Service.Namespace); d != 0 {
		return d
	}
	if d := strings.Compare(a.ID.Service.Name, b.ID.Service.Name); d != 0 {
		return d
	}
	return strings.Compare(a.ID.Port, b.ID.Port)
}

// assign sets the frontends that a service port gets of those it wants.
func (c *Compiler) assign(p *portState) {
	p.reassign = false
	got := p.wanted
	lost := c.scratch.conflicts[:0]
	if p.contested {
		got = c.scratch.frontends[:0]
		p.contested = false
		for _, f := range p.wanted {
			if owner := c.claims.owner[f.FrontendKey]; owner != p {
				lost = append(lost, conflict{f, owner.ID})
				p.contested = true
			} else {
				got = append(got, f)
			}
		}
		c.scratch.frontends, c.scratch.conflicts = got, lost
	}
	if !slices.Equal(lost, p.conflicts) {
		p.conflicts = slices.Clone(lost)
		p.service.complain = true
	}
	if p.fresh || !slices.Equal(got, p.Frontends) {
		if len(lost) > 0 {
			got = slices.Clone(got)
		} else {
			got = p.wanted
		}
		p.Frontends = got
		p.all = true
	}
}
