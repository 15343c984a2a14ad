// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	"portolan.dev/portolan/pkg/service"
)

// outside is how traffic from outside is served where a Service does not say.
type outside struct {
	algorithm  service.Algorithm
	forwarding service.Forwarding
	maglevSize uint32
}

// serve settles how a service port serves traffic from outside. Ports that are
// for the inside only have no use for a Maglev table.
func (o *outside) serve(p *portState, obj *service.Service, wanted []Frontend) {
	algorithm, forwarding := obj.Algorithm, obj.Forwarding
	if algorithm == service.DefaultAlgorithm {
		algorithm = o.algorithm
	}
	if forwarding == service.DefaultForwarding {
		forwarding = o.forwarding
	}
	published := slices.ContainsFunc(wanted, func(f Frontend) bool { return f.Kind != ClusterIP })
	size := uint32(0)
	if published && algorithm == service.Maglev {
		size = o.maglevSize
	}
	direct := published && forwarding.Direct(p.ID.Protocol)
	if p.MaglevSize != size || p.Direct != direct {
		p.MaglevSize, p.Direct = size, direct
		p.all = true
	}
}

// balance takes the weights of a service port's endpoints from its slices, and
// tells whether any differs. What stands in several slices has the highest.
func (c *Compiler) balance(p *portState) bool {
	weighted := false
	for i := range p.sources {
		weighted = weighted || p.sources[i].slice.object.Weight > 1
	}
	if !weighted {
		differ := p.weights != nil
		p.weights = nil
		return differ
	}
	weights := make([]uint32, len(p.facts))
	for i := range p.sources {
		s := &p.sources[i]
		for j, pos := range s.positions {
			if s.slice.facts[j] != 0 {
				weights[pos] = max(weights[pos], s.slice.object.Weight)
			}
		}
	}
	differ := !slices.Equal(weights, p.weights)
	p.weights = weights
	return differ
}

// locate finds the endpoints of a service port that no slice gives a node, and
// tells whether they are others than before.
func (c *Compiler) locate(p *portState) bool {
	was := p.nodeless
	p.nodeless = nil
	if !slices.ContainsFunc(p.sources, func(s source) bool { return s.slice.nodeless }) {
		return was != nil
	}
	p.nodeless = make([]bool, len(p.facts))
	for i := range p.nodeless {
		p.nodeless[i] = true
	}
	for i := range p.sources {
		s := &p.sources[i]
		for j, pos := range s.positions {
			if s.slice.facts[j] != 0 && !nodeless(s.slice.object.Endpoints[j]) {
				p.nodeless[pos] = false
			}
		}
	}
	return !slices.Equal(was, p.nodeless)
}
