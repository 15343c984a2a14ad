// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"portolan.dev/portolan/pkg/service"
)

// A second compiler, written straight from Kubernetes' rules: slow, without
// memory, and short enough to be checked by reading. It gives each service port
// as text.
type reference struct {
	node     service.Node
	max      int
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.EndpointSlice
}

// refEndpoint is an endpoint of a service port, of all slices together.
type refEndpoint struct {
	addr netip.AddrPort
	service.Endpoint
	weight   uint32
	nodeless bool
}

func (r *reference) compile() map[PortID]string {
	out := map[PortID]string{}
	owners := r.owners()
	for _, s := range r.services {
		if s.Headless || s.Type == service.ExternalName || s.ProxyName != "" {
			continue
		}
		for _, family := range []service.Family{service.IPv4, service.IPv6} {
			for _, p := range s.Ports {
				id := PortID{s.Name, p.Name, p.Protocol, family}
				if wants := r.frontends(s, p, family); wants != nil {
					out[id] = r.port(s, id, wants, owners)
				}
			}
		}
	}
	return out
}

// frontends are what a port asks for; nil without a ClusterIP of the family.
func (r *reference) frontends(s *service.Service, p service.Port, family service.Family) []Frontend {
	inside, outside := Cluster, Cluster
	if s.InternalLocal {
		inside = Local
	}
	if s.ExternalLocal {
		outside = Local
	}
	var out []Frontend
	add := func(a netip.Addr, port uint16, k Kind, internal, external Policy, guard bool) {
		key := FrontendKey{netip.AddrPortFrom(a, port), p.Protocol}
		if service.FamilyOf(a) == family && !slices.ContainsFunc(out, func(f Frontend) bool { return f.FrontendKey == key }) {
			out = append(out, Frontend{key, k, internal, external, guard})
		}
	}
	for _, a := range s.ClusterIPs {
		add(a, p.Port, ClusterIP, inside, inside, false)
	}
	if out == nil {
		return nil
	}
	if p.NodePort != 0 && s.Type != service.ClusterIP {
		add(unspecified(family), p.NodePort, NodePort, Cluster, outside, false)
	}
	if s.Type == service.LoadBalancer {
		for _, a := range s.LoadBalancerIPs {
			add(a, p.Port, LoadBalancer, Cluster, outside, r.ranges(s, family) != nil)
		}
	}
	for _, a := range s.ExternalIPs {
		add(a, p.Port, ExternalIP, Cluster, outside, false)
	}
	return out
}

// ranges guard a family: nil when it has none, or one that is everything.
func (r *reference) ranges(s *service.Service, family service.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s.SourceRanges {
		if service.FamilyOf(p.Addr()) != family || s.Type != service.LoadBalancer {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// owners: of all who want a frontend the oldest has it.
func (r *reference) owners() map[FrontendKey]PortID {
	type claim struct {
		id      PortID
		created time.Time
	}
	claims := map[FrontendKey][]claim{}
	for _, s := range r.services {
		if s.Headless || s.Type == service.ExternalName || s.ProxyName != "" {
			continue
		}
		for _, family := range []service.Family{service.IPv4, service.IPv6} {
			for _, p := range s.Ports {
				for _, f := range r.frontends(s, p, family) {
					claims[f.FrontendKey] = append(claims[f.FrontendKey], claim{PortID{s.Name, p.Name, p.Protocol, family}, s.Created})
				}
			}
		}
	}
	out := map[FrontendKey]PortID{}
	for key, list := range claims {
		out[key] = slices.MinFunc(list, func(a, b claim) int {
			return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id.Service.Namespace, b.id.Service.Namespace),
				cmp.Compare(a.id.Service.Name, b.id.Service.Name), cmp.Compare(a.id.Port, b.id.Port))
		}).id
	}
	return out
}

// endpoints of a service port: one per address; a running one beats a
// terminating one, for readiness as for locality.
func (r *reference) endpoints(id PortID) []refEndpoint {
	byAddr := map[netip.AddrPort]refEndpoint{}
	for _, sl := range r.slices {
		if sl.ServiceName() != id.Service || sl.Family != id.Family || sl.Headless {
			continue
		}
		for _, p := range sl.Ports {
			if p.Name != id.Port || p.Protocol != id.Protocol {
				continue
			}
			for _, e := range sl.Endpoints {
				if service.FamilyOf(e.Addr) != id.Family {
					continue
				}
				addr := netip.AddrPortFrom(e.Addr, p.Port)
				old, known := byAddr[addr]
				weight, nodeless := max(1, old.weight, sl.Weight), e.NodeName == ""
				if known && r.rank(e) <= r.rank(old.Endpoint) {
					e = old.Endpoint
				}
				byAddr[addr] = refEndpoint{addr, e, weight, nodeless && (!known || old.nodeless)}
			}
		}
	}
	var out []refEndpoint
	for _, e := range byAddr {
		out = append(out, e)
	}
	return out
}

// rank orders the entries of one address; beyond running and terminating it
// only has to be the same whatever the order of the slices.
func (r *reference) rank(e service.Endpoint) int {
	n := 0
	for _, b := range []bool{
		!e.Terminating, e.Ready, e.Serving, e.NodeName == r.node.Name,
		e.Ready && len(e.NodeHints) > 0, e.Ready && slices.Contains(e.NodeHints, r.node.Name),
		e.Ready && len(e.ZoneHints) > 0, e.Ready && slices.Contains(e.ZoneHints, r.node.Zone),
	} {
		n *= 2
		if b {
			n++
		}
	}
	return n
}

func (r *reference) port(s *service.Service, id PortID, wants []Frontend, owners map[FrontendKey]PortID) string {
	var got []Frontend
	for _, f := range wants {
		if owners[f.FrontendKey] == id {
			got = append(got, f)
		}
	}
	all := r.limited(r.endpoints(id))
	cluster := r.clusterSet(all)
	local := usableOf(all, func(e refEndpoint) bool { return e.NodeName == r.node.Name })
	return outsideText(s, id.Protocol, wants) + portText(got, len(cluster) == 0, s.Affinity, r.ranges(s, id.Family), r.texts(cluster, all, cluster, local), r.texts(local, all, cluster, local), r.texts(servingOf(all), all, cluster, local))
}

// limited keeps the endpoints that fit, ready ones and this node's first.
func (r *reference) limited(all []refEndpoint) []refEndpoint {
	live := servingOf(all)
	if len(all) <= r.max || len(live) <= r.max {
		return all
	}
	class := func(e refEndpoint) int {
		n := 0
		if e.Ready {
			n += 2
		}
		if e.NodeName == r.node.Name {
			n++
		}
		return n
	}
	slices.SortFunc(live, func(a, b refEndpoint) int { return cmp.Or(class(b)-class(a), a.addr.Compare(b.addr)) })
	return live[:r.max]
}

func servingOf(all []refEndpoint) []refEndpoint {
	return filter(all, func(e refEndpoint) bool { return e.Ready || e.Serving })
}

func filter(all []refEndpoint, keep func(refEndpoint) bool) []refEndpoint {
	var out []refEndpoint
	for _, e := range all {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

// usableOf: the ready ones of those that are eligible; without any, those that
// terminate but still serve.
func usableOf(all []refEndpoint, eligible func(refEndpoint) bool) []refEndpoint {
	of := filter(all, eligible)
	if ready := filter(of, func(e refEndpoint) bool { return e.Ready }); ready != nil {
		return ready
	}
	return filter(of, func(e refEndpoint) bool { return e.Serving && e.Terminating })
}

// clusterSet: usable endpoints anywhere; of ready ones those that the hints
// prefer, if all ready ones have hints and one is meant for here.
func (r *reference) clusterSet(all []refEndpoint) []refEndpoint {
	usable := usableOf(all, func(refEndpoint) bool { return true })
	if len(usable) == 0 || !usable[0].Ready {
		return usable
	}
	for _, hints := range []struct {
		of   func(refEndpoint) []string
		here string
	}{
		{func(e refEndpoint) []string { return e.NodeHints }, r.node.Name},
		{func(e refEndpoint) []string { return e.ZoneHints }, r.node.Zone},
	} {
		everywhere := !slices.ContainsFunc(usable, func(e refEndpoint) bool { return len(hints.of(e)) == 0 })
		meant := filter(usable, func(e refEndpoint) bool { return hints.here != "" && slices.Contains(hints.of(e), hints.here) })
		if everywhere && len(meant) > 0 {
			return meant
		}
	}
	return usable
}

func (r *reference) texts(set, _, cluster, local []refEndpoint) []string {
	var out []string
	for _, e := range set {
		state := Draining
		if e.Ready {
			state = Active
		}
		in := func(s []refEndpoint) bool {
			return slices.ContainsFunc(s, func(o refEndpoint) bool { return o.addr == e.addr })
		}
		out = append(out, fmt.Sprint(e.weight, Backend{e.addr, state, in(cluster), in(local), e.NodeName == r.node.Name, e.nodeless}))
	}
	return out
}

// outsideText: a table and direct answers are for what is published outside.
func outsideText(s *service.Service, p service.Protocol, wants []Frontend) string {
	published := slices.ContainsFunc(wants, func(f Frontend) bool { return f.Kind != ClusterIP })
	maglev := published && s.Algorithm == service.Maglev
	direct := published && (s.Forwarding == service.DSR || s.Forwarding == service.Hybrid && p == service.TCP)
	return fmt.Sprintf("maglev %v direct %v\n", maglev, direct)
}

// portText is a service port without what is history.
func portText(frontends []Frontend, refuse bool, affinity time.Duration, ranges []netip.Prefix, cluster, local, backends []string) string {
	slices.Sort(cluster)
	slices.Sort(local)
	slices.Sort(backends)
	return fmt.Sprintf("frontends %v\nrefuse %v affinity %v ranges %v\ncluster %v\nlocal %v\nbackends %v\n", frontends, refuse, affinity, ranges, cluster, local, backends)
}

// textOf is portText of a compiled port; it also checks that this node's
// endpoints come first.
func textOf(t *rapid.T, p *Port) string {
	texts := func(positions []int32) []string {
		var out []string
		for i, pos := range positions {
			if i > 0 && p.Backend(pos).OnNode && !p.Backend(positions[i-1]).OnNode {
				t.Fatalf("%v: an endpoint of this node stands behind others", p.ID)
			}
			out = append(out, fmt.Sprint(p.Weight(pos), p.Backend(pos)))
		}
		return out
	}
	var serving []string
	for pos, b := range backends(p) {
		if b.Addr.IsValid() {
			serving = append(serving, fmt.Sprint(p.Weight(int32(pos)), b))
		}
	}
	return fmt.Sprintf("maglev %v direct %v\n", p.MaglevSize == DefaultMaglevSize, p.Direct) + portText(p.Frontends, p.Refuse, p.Affinity, p.SourceRanges, texts(p.Cluster), texts(p.Local), serving)
}

func TestIncrementalCompilationIsWhatTheRulesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ref := &reference{
			node: service.Node{Name: "n1", Zone: "z1"}, max: rapid.SampledFrom([]int{1000, 1000, 3}).Draw(t, "max"),
			services: map[service.Name]*service.Service{}, slices: map[service.Name]*service.EndpointSlice{},
		}
		c := New(Config{Node: ref.node, MaxEndpoints: ref.max})
		mirror := map[PortID]*mirrored{}
		for range 20 {
			u := drawUpdate(t, ref)
			for _, change := range c.Apply(u) {
				follow(t, mirror, change)
			}
			want := ref.compile()
			for id, text := range want {
				if p := c.Port(id); p == nil {
					t.Fatalf("%v is missing", id)
				} else if got := textOf(t, p); got != text {
					t.Fatalf("%v\ncompiled:\n%s\nby the rules:\n%s", id, got, text)
				}
				mirror[id].same(t, c.Port(id))
			}
			explains(t, c)
			for p := range c.Ports() {
				if _, ok := want[p.ID]; !ok && p.ID.Protocol != 0 {
					t.Fatalf("%v should not be", p.ID)
				}
			}
			if again := c.Apply(u); len(again) > 0 {
				t.Fatalf("the same objects again change %v", again)
			}
		}
	})
}

// explains checks that what Explain says of each endpoint is what the sets and
// backends of its service port are.
func explains(t *rapid.T, c *Compiler) {
	for _, name := range someNames {
		seen := map[FrontendKey]map[string]bool{}
		for _, e := range c.Explain(name) {
			p := c.Port(e.PortID)
			if p == nil {
				continue // headless
			}
			var b Backend
			all := backends(p)
			if at := slices.IndexFunc(all, func(b Backend) bool { return b.Addr == e.Addr }); at >= 0 {
				b = all[at]
			}
			in := strings.HasPrefix(e.Reason, "in") || strings.Contains(e.Reason, "in for")
			if e.InCluster != b.InCluster || e.InLocal != b.InLocal || in != (b.InCluster || b.InLocal) {
				t.Fatalf("%v is %+v, explained as %+v", e.Addr, b, e)
			}
			key := FrontendKey{e.Addr, e.Protocol}
			if seen[key] == nil {
				seen[key] = map[string]bool{}
			}
			if seen[key][e.Port] {
				t.Fatalf("%v is explained twice for port %q", e.Addr, e.Port)
			}
			seen[key][e.Port] = true
		}
	}
}
