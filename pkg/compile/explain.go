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
	tally := tally{mode: modeOf(p.facts)}
	for _, f := range p.facts {
		if f&ready != 0 {
			tally.ready++
		}
	}
	// By position, so that the time is in proportion to the endpoints: whoever
	// asks holds up the next change.
	type entry struct {
		source *source
		at     int
		facts  facts
	}
	entries := make([]entry, len(p.facts))
	for i := range p.sources {
		src := &p.sources[i]
		for at, pos := range src.positions {
			// Facts 0 have no position: an address of another family.
			if f := src.slice.facts[at]; f != 0 && f > entries[pos].facts {
				entries[pos] = entry{src, at, f}
			}
		}
	}
	out := make([]Explanation, 0, len(p.facts)-p.free)
	for pos, e := range entries {
		if e.facts == 0 {
			continue
		}
		b, sl := p.Backend(int32(pos)), e.source.slice
		out = append(out, Explanation{PortID: p.ID, Endpoint: sl.object.Endpoints[e.at], Addr: p.addrs[pos].addrPort(),
			Slice: sl.object.Name, InCluster: b.InCluster, InLocal: b.InLocal,
			Reason: c.reason(tally, &b, e.facts, &sl.object.Endpoints[e.at])})
	}
	slices.SortFunc(out, func(a, b Explanation) int { return a.Addr.Compare(b.Addr) })
	return out
}

// tally is what the endpoints of a service port have in common.
type tally struct {
	mode  mode
	ready int
}

// reason is judge in words.
func (c *Compiler) reason(t tally, b *Backend, f facts, e *service.Endpoint) string {
	switch {
	case f.live() && b.State == 0:
		return fmt.Sprintf("out: beyond the limit of %d endpoints", c.max)
	case f&ready == 0 && f&running != 0:
		return "out: not ready"
	case !f.live():
		return "out: terminating and not serving any more"
	case f&ready == 0 && b.InCluster:
		return "in: terminating but serving, the last resort"
	case f&ready == 0 && b.InLocal:
		return fmt.Sprintf("out for policy Cluster: terminating, %d ready remain; in for policy Local as last resort", t.ready)
	case f&ready == 0:
		return fmt.Sprintf("out: terminating, %d ready remain", t.ready)
	case !b.InCluster && b.InLocal:
		return fmt.Sprintf("out for policy Cluster: %s; in for policy Local: ready, on this node", c.hintReason(t.mode, e))
	case !b.InCluster:
		return "out: " + c.hintReason(t.mode, e)
	case !b.InLocal:
		return "in: ready (on another node: out for policy Local)"
	}
	return "in: ready, on this node"
}

func (c *Compiler) hintReason(m mode, e *service.Endpoint) string {
	if m&preference == preferNode {
		return fmt.Sprintf("hinted for %s, hints prefer this node", orNone("node", e.NodeHints))
	}
	return fmt.Sprintf("hinted for %s, hints prefer this node's zone %s", orNone("zone", e.ZoneHints), c.node.Zone)
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
