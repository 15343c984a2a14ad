// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"portolan.dev/portolan/pkg/service"
)

// Explanation says of one endpoint whether it is used, and why. It is made on
// demand: nothing of it is stored.
type Explanation struct {
	PortID
	Endpoint service.Endpoint
	// Addr is where it serves the port.
	Addr  netip.AddrPort
	Slice service.Name
	// InCluster and InLocal tell whether the sets of the two policies have it.
	InCluster, InLocal bool
	Reason             string
}

// Explain lists the endpoints of a Service by port, in the order of their
// addresses. An address that stands in several slices is listed once, by the
// slice that counts. For a Service without service ports (headless) all
// endpoints are listed, as DNS would give them.
func (c *Compiler) Explain(name service.Name) []Explanation {
	s := c.services[name]
	if s == nil || s.object == nil {
		return nil
	}
	if !proxied(s.object) {
		return s.explainHeadless()
	}
	var out []Explanation
	for _, p := range s.ports {
		out = append(out, c.explainPort(p)...)
	}
	return out
}

func (c *Compiler) explainPort(p *portState) []Explanation {
	if p.elsewhere() {
		return nil
	}
	mode := modeOf(p.facts)
	out := make([]Explanation, 0, len(p.facts))
	for _, src := range p.sources {
		for i, pos := range src.positions {
			f := src.slice.facts[i]
			if f == 0 || p.addrs[pos].Port() != src.number {
				continue
			}
			b := p.Backends[pos]
			e := Explanation{PortID: p.ID, Endpoint: src.slice.object.Endpoints[i], Addr: p.addrs[pos],
				Slice: src.slice.object.Name, InCluster: b.InCluster, InLocal: b.InLocal,
				Reason: c.reason(p, mode, p.facts[pos], &src.slice.object.Endpoints[i])}
			if at := slices.IndexFunc(out, func(o Explanation) bool { return o.Addr == e.Addr }); at < 0 {
				out = append(out, e)
			} else if f == p.facts[pos] {
				out[at] = e
			}
		}
	}
	slices.SortFunc(out, func(a, b Explanation) int { return a.Addr.Compare(b.Addr) })
	return out
}

// reason is judge in words.
func (c *Compiler) reason(p *portState, m mode, f facts, e *service.Endpoint) string {
	ready := 0
	for _, g := range p.facts {
		if g&readyFact != 0 {
			ready++
		}
	}
	switch {
	case f&readyFact == 0 && f&running != 0:
		return "out: not ready"
	case !f.live():
		return "out: terminating and not serving any more"
	case f&readyFact == 0 && ready > 0 && m&localFallback != 0 && f&onNode != 0:
		return fmt.Sprintf("out for policy Cluster: terminating, %d ready remain; in for policy Local as last resort", ready)
	case f&readyFact == 0 && ready > 0:
		return fmt.Sprintf("out: terminating, %d ready remain", ready)
	case f&readyFact == 0:
		return "in: terminating but serving, the last resort"
	case !m.prefers(f):
		return c.hintReason(m, e)
	case f&onNode == 0:
		return "in: ready (on another node: out for policy Local)"
	}
	return "in: ready, on this node"
}

const readyFact = ready

func (c *Compiler) hintReason(m mode, e *service.Endpoint) string {
	if m&preference == preferNode {
		return fmt.Sprintf("out: hinted for %s, hints prefer this node", orNone("node", e.NodeHints))
	}
	return fmt.Sprintf("out: hinted for %s, hints prefer this node's zone %s", orNone("zone", e.ZoneHints), c.node.Zone)
}

func orNone(what string, names []string) string {
	if len(names) == 0 {
		return "no " + what
	}
	return what + " " + strings.Join(names, ", ")
}

func (s *serviceState) explainHeadless() []Explanation {
	var out []Explanation
	for _, sl := range s.slices {
		for _, port := range slicePorts(sl.object) {
			for _, e := range sl.object.Endpoints {
				reason := "published by DNS: ready"
				if !e.Ready {
					reason = "not published by DNS: not ready"
				}
				out = append(out, Explanation{
					PortID:   PortID{Service: s.name, Port: port.Name, Protocol: port.Protocol, Family: sl.object.Family},
					Endpoint: e, Addr: netip.AddrPortFrom(e.Addr, port.Port), Slice: sl.object.Name, Reason: reason,
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b Explanation) int { return a.Addr.Compare(b.Addr) })
	return out
}

// slicePorts are the ports of a slice, or one without a number: a headless
// Service need not have any.
func slicePorts(sl *service.EndpointSlice) []service.SlicePort {
	if len(sl.Ports) == 0 {
		return []service.SlicePort{{}}
	}
	return sl.Ports
}
