// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
)

// Address plan: cluster IPs 10.96/16 and fd00:96::/32, endpoints 10.0/16 and
// fd00:10::/32, load balancers 192.0.2/24, external IPs 198.51.100/24. This
// node is "here" in zone "a"; other nodes are "there" and "far".

func named(s string) service.Name {
	namespace, name, _ := strings.Cut(s, "/")
	return service.Name{Namespace: namespace, Name: name}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// aService is a ClusterIP Service with the port http, 80/TCP, then changed.
func aService(name string, change ...func(*service.Service)) *service.Service {
	s := &service.Service{
		Name: named(name), Created: time.Unix(1000, 0), ClusterIPs: addrs("10.96.0.1"),
		Ports: []service.Port{{Name: "http", Protocol: service.TCP, Port: 80}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// aSlice is a slice of the Service of that name: port http, 8080/TCP.
func aSlice(name, of string, endpoints ...service.Endpoint) *service.EndpointSlice {
	s := &service.EndpointSlice{
		Name: named(name), Service: of, Family: service.IPv4,
		Ports:     []service.SlicePort{{Name: "http", Protocol: service.TCP, Port: 8080}},
		Endpoints: endpoints,
	}
	if len(endpoints) > 0 {
		s.Family = service.FamilyOf(endpoints[0].Addr)
	}
	return s
}

// ep is an endpoint on another node: its address, then words for what is
// special about it: here, unready, terminating, unserving, zone=a,b, node=here.
func ep(addr string, words ...string) service.Endpoint {
	e := service.Endpoint{Addr: netip.MustParseAddr(addr), Ready: true, Serving: true, NodeName: "there", Zone: "b"}
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "here":
			e.NodeName, e.Zone = "here", "a"
		case "unready":
			e.Ready = false
		case "terminating":
			e.Terminating = true
		case "unserving":
			e.Serving = false
		case "zone":
			e.ZoneHints = strings.Split(value, ",")
		case "node":
			e.NodeHints = strings.Split(value, ",")
		default:
			panic("unknown word " + w)
		}
	}
	return e
}

// batch is an Update of the objects: Services, slices, a Node, or "-ns/name"
// for a Service and "~ns/name" for a slice that is gone.
func batch(objects ...any) Update {
	u := Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.EndpointSlice{}}
	for _, o := range objects {
		switch o := o.(type) {
		case *service.Service:
			u.Services[o.Name] = o
		case *service.EndpointSlice:
			u.Slices[o.Name] = o
		case service.Node:
			u.Node = &o
		case string:
			if gone, ok := strings.CutPrefix(o, "-"); ok {
				u.Services[named(gone)] = nil
			} else {
				u.Slices[named(strings.TrimPrefix(o, "~"))] = nil
			}
		}
	}
	return u
}

func newCompiler() *Compiler {
	return New(Config{Node: service.Node{Name: "here", Zone: "a"}})
}

func compiled(objects ...any) *Compiler {
	c := newCompiler()
	c.Apply(batch(objects...))
	return c
}

// http is the IPv4 service port http of ns/web.
func http(t *testing.T, c *Compiler) *Port {
	t.Helper()
	return port(t, c, "ns/web", "http", service.IPv4)
}

func port(t *testing.T, c *Compiler, of, name string, family service.Family) *Port {
	t.Helper()
	p := c.Port(PortID{named(of), name, service.TCP, family})
	if p == nil {
		t.Fatalf("%s has no service port %q in %v", of, name, family)
	}
	return p
}

// members are the addresses of a set, sorted: "10.0.0.1 10.0.0.2", with the
// number where it is not 8080.
func members(p *Port, set []int32) string {
	var out []string
	for _, pos := range set {
		a := p.Backend(pos).Addr
		if a.Port() == 8080 {
			out = append(out, a.Addr().String())
		} else {
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// backends are the backends by position, holes included.
func backends(p *Port) []Backend {
	out := make([]Backend, p.Positions())
	for pos := range out {
		out[pos] = p.Backend(int32(pos))
	}
	return out
}

// sets is both sets in one line, and what an empty one means.
func sets(p *Port) string {
	s := fmt.Sprintf("cluster[%s] local[%s]", members(p, p.Cluster), members(p, p.Local))
	if p.Refuse {
		s += " refuse"
	}
	return s
}

// frontends are the frontends of a service port, one a line: address, kind,
// policies inside and outside, guard.
func frontends(p *Port) string {
	var out []string
	for _, f := range p.Frontends {
		line := fmt.Sprintf("%s %s %s/%s", f.Addr, f.Kind, policyWord(f.Internal), policyWord(f.External))
		if f.GuardSources {
			line += " guarded"
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func policyWord(p Policy) string {
	if p == Local {
		return "local"
	}
	return "cluster"
}

// changed are the ids of changes, sorted, "-" before those that are gone.
func changed(changes []Change) string {
	out := map[string]bool{}
	for _, ch := range changes {
		id := fmt.Sprintf("%s:%s:%s", ch.ID.Service, ch.ID.Port, ch.ID.Family)
		if ch.Port == nil {
			id = "-" + id
		}
		if out[id] {
			id += " TWICE"
		}
		out[id] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(out)), " ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

// problems are the reasons and messages of all problems, one a line.
func problems(c *Compiler) string {
	list, _ := c.Problems()
	var out []string
	for _, p := range list {
		out = append(out, p.Reason+" "+p.String())
	}
	return strings.Join(out, "\n")
}
