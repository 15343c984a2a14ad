// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"

	"portolan.dev/portolan/pkg/service"
)

// reshape matches the service ports with the Service's new object.
func (c *Compiler) reshape(s *serviceState) {
	old := s.object
	s.object, s.next, s.pending = s.next, nil, false
	s.complain = s.complain || len(c.problems[s.name]) > 0
	for _, p := range s.ports {
		p.kept = false
		if old != nil && s.object != nil && !old.Created.Equal(s.object.Created) {
			c.claims.disturb(p)
		}
	}
	before := s.ports
	s.ports = c.pools.portRefs.take(c.portCount(s.object), c.chunked)[:0]
	if s.object != nil {
		for _, family := range []service.Family{service.IPv4, service.IPv6} {
			c.reshapeFamily(s, before, family)
		}
	}
	for _, p := range before {
		if !p.kept {
			c.release(p)
		}
	}
}

func (c *Compiler) portCount(obj *service.Service) int {
	if obj == nil {
		return 0
	}
	return max(1, len(obj.Ports)) * len(obj.ClusterIPs)
}

func (c *Compiler) reshapeFamily(s *serviceState, before []*portState, family service.Family) {
	obj := s.object
	if !hasFamily(obj, family) || !proxied(obj) {
		return
	}
	if obj.ProxyName != "" {
		c.reshapeElsewhere(s, before, family)
		return
	}
	sources := sourcesOf(obj, family)
	for i := range obj.Ports {
		sp := &obj.Ports[i]
		id := PortID{Service: s.name, Port: sp.Name, Protocol: sp.Protocol, Family: family}
		p := c.portOf(s, before, id)
		if p == nil {
			continue // a port that the object names twice
		}
		if p.Type != obj.Type || p.Affinity != obj.Affinity || !slices.Equal(p.SourceRanges, sources) {
			p.Type, p.Affinity, p.SourceRanges = obj.Type, obj.Affinity, sources
			p.all = true
		}
		wanted := frontendsOf(c.scratch.frontends[:0], obj, sp, family, sources != nil)
		c.scratch.frontends = wanted
		c.outside.serve(p, obj, wanted)
		c.want(p, wanted)
	}
}

// portOf returns the service port of that id, an old one or a new one; nil
// when this object had it already.
func (c *Compiler) portOf(s *serviceState, before []*portState, id PortID) *portState {
	for _, p := range s.ports {
		if p.ID == id {
			return nil
		}
	}
	for _, p := range before {
		if p.ID == id {
			p.kept = true
			s.ports = append(s.ports, p)
			return p
		}
	}
	p := &c.pools.ports.take(1, c.chunked)[0]
	p.ID, p.service, p.fresh, p.reassign, p.kept = id, s, true, true, true
	s.ports = append(s.ports, p)
	return p
}

// want claims the frontends that are new and gives up those that are not
// wanted any more.
func (c *Compiler) want(p *portState, wanted []Frontend) {
	if slices.Equal(p.wanted, wanted) {
		return
	}
	for i := range p.wanted {
		if !hasKey(wanted, p.wanted[i].FrontendKey) {
			c.claims.remove(p.wanted[i].FrontendKey, p)
		}
	}
	for i := range wanted {
		if !hasKey(p.wanted, wanted[i].FrontendKey) {
			c.claims.add(wanted[i].FrontendKey, p)
		}
	}
	p.wanted = c.pools.frontends.copyOf(wanted, c.chunked)
	p.reassign = true
}

func hasKey(list []Frontend, key FrontendKey) bool {
	for i := range list {
		if list[i].FrontendKey == key {
			return true
		}
	}
	return false
}

// reshapeElsewhere makes the pseudo port of a Service that another proxy
// serves: its cluster IPs, which are to be let pass.
func (c *Compiler) reshapeElsewhere(s *serviceState, before []*portState, family service.Family) {
	p := c.portOf(s, before, PortID{Service: s.name, Family: family})
	var pass []Frontend
	for _, addr := range s.object.ClusterIPs {
		if service.FamilyOf(addr) == family {
			pass = append(pass, Frontend{FrontendKey: FrontendKey{Addr: netip.AddrPortFrom(addr, 0)}, Kind: Elsewhere})
		}
	}
	p.reassign = false
	if p.fresh || !slices.Equal(p.Frontends, pass) {
		p.Frontends, p.all = pass, true
		c.changed(p)
	}
}

func (p *portState) elsewhere() bool { return p.ID.Protocol == 0 }

// release takes a service port out of force.
func (c *Compiler) release(p *portState) {
	for i := range p.wanted {
		c.claims.remove(p.wanted[i].FrontendKey, p)
	}
	p.gone = true
	if len(p.conflicts) > 0 || p.excess > 0 {
		p.service.complain = true
	}
	c.changed(p)
}
