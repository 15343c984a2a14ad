// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
)

func ranges(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// balanced is a LoadBalancer Service with an address of every kind.
func balanced(s *service.Service) {
	s.Type = service.LoadBalancer
	s.ClusterIPs = addrs("10.96.0.1", "fd00:96::1")
	s.LoadBalancerIPs = addrs("192.0.2.1", "fd00:1b::1")
	s.ExternalIPs = addrs("198.51.100.1", "fd00:e::1")
	s.Ports[0].NodePort = 30080
}

func TestFrontendsFollowTheAddressesAndPolicies(t *testing.T) {
	for _, c := range []struct {
		name      string
		change    func(*service.Service)
		four, six string // "" is no service port of that family
	}{
		{"every kind, per family", func(*service.Service) {},
			"10.96.0.1:80 ClusterIP cluster/cluster\n0.0.0.0:30080 NodePort cluster/cluster\n192.0.2.1:80 LoadBalancer cluster/cluster\n198.51.100.1:80 ExternalIP cluster/cluster",
			"[fd00:96::1]:80 ClusterIP cluster/cluster\n[::]:30080 NodePort cluster/cluster\n[fd00:1b::1]:80 LoadBalancer cluster/cluster\n[fd00:e::1]:80 ExternalIP cluster/cluster"},
		{"a family without a cluster IP is not served", func(s *service.Service) { s.ClusterIPs = addrs("10.96.0.1") },
			"10.96.0.1:80 ClusterIP cluster/cluster\n0.0.0.0:30080 NodePort cluster/cluster\n192.0.2.1:80 LoadBalancer cluster/cluster\n198.51.100.1:80 ExternalIP cluster/cluster", ""},
		{"internalTrafficPolicy Local counts for the cluster IP alone, from everywhere",
			func(s *service.Service) { s.InternalLocal, s.ClusterIPs = true, addrs("10.96.0.1") },
			"10.96.0.1:80 ClusterIP local/local\n0.0.0.0:30080 NodePort cluster/cluster\n192.0.2.1:80 LoadBalancer cluster/cluster\n198.51.100.1:80 ExternalIP cluster/cluster", ""},
		{"externalTrafficPolicy Local counts for what comes from outside",
			func(s *service.Service) { s.ExternalLocal, s.ClusterIPs = true, addrs("10.96.0.1") },
			"10.96.0.1:80 ClusterIP cluster/cluster\n0.0.0.0:30080 NodePort cluster/local\n192.0.2.1:80 LoadBalancer cluster/local\n198.51.100.1:80 ExternalIP cluster/local", ""},
		{"externalTrafficPolicy Local without an outside address is ignored", func(s *service.Service) {
			*s = *aService("ns/web", func(s *service.Service) { s.ExternalLocal = true })
		}, "10.96.0.1:80 ClusterIP cluster/cluster", ""},
		{"node port 0 is none", func(s *service.Service) { s.Ports[0].NodePort, s.ClusterIPs = 0, addrs("10.96.0.1") },
			"10.96.0.1:80 ClusterIP cluster/cluster\n192.0.2.1:80 LoadBalancer cluster/cluster\n198.51.100.1:80 ExternalIP cluster/cluster", ""},
		{"addresses of ipMode Proxy and names are left alone", func(s *service.Service) {
			s.ProxyIPs, s.LoadBalancerIPs, s.LoadBalancerHostnames, s.ClusterIPs = s.LoadBalancerIPs, nil, []string{"lb.example"}, addrs("10.96.0.1")
		}, "10.96.0.1:80 ClusterIP cluster/cluster\n0.0.0.0:30080 NodePort cluster/cluster\n198.51.100.1:80 ExternalIP cluster/cluster", ""},
		{"several ingress addresses are served alike", func(s *service.Service) {
			s.LoadBalancerIPs, s.ExternalIPs, s.Ports[0].NodePort, s.ClusterIPs = addrs("192.0.2.1", "192.0.2.2"), nil, 0, addrs("10.96.0.1")
		}, "10.96.0.1:80 ClusterIP cluster/cluster\n192.0.2.1:80 LoadBalancer cluster/cluster\n192.0.2.2:80 LoadBalancer cluster/cluster", ""},
		{"an address that is also an external IP stays a guarded load balancer's", func(s *service.Service) {
			s.ExternalIPs, s.Ports[0].NodePort, s.ClusterIPs, s.SourceRanges = addrs("192.0.2.1"), 0, addrs("10.96.0.1"), ranges("10.0.0.0/8")
		}, "10.96.0.1:80 ClusterIP cluster/cluster\n192.0.2.1:80 LoadBalancer cluster/cluster guarded", ""},
		{"a cluster IP Service's external IPs are served", func(s *service.Service) { s.Type, s.ClusterIPs = service.ClusterIP, addrs("10.96.0.1") },
			"10.96.0.1:80 ClusterIP cluster/cluster\n198.51.100.1:80 ExternalIP cluster/cluster", ""},
		{"headless is not served", func(s *service.Service) { s.Headless = true }, "", ""},
		{"ExternalName is not served, whatever was left in it", func(s *service.Service) { s.Type = service.ExternalName }, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			comp := compiled(aService("ns/web", balanced, c.change))
			for family, want := range map[service.Family]string{service.IPv4: c.four, service.IPv6: c.six} {
				p := comp.Port(PortID{named("ns/web"), "http", service.TCP, family})
				if p == nil && want == "" {
					continue
				}
				if p == nil || want == "" {
					t.Errorf("the %v service port is %v, want\n%s", family, p, want)
					continue
				}
				expect(t, fmt.Sprint("the ", family, " frontends"), frontends(p), want)
			}
		})
	}
}

func TestSourceRangesGuardTheirFamily(t *testing.T) {
	for _, c := range []struct {
		name      string
		in        []netip.Prefix
		four, six []netip.Prefix
	}{
		{"none", nil, nil, nil},
		{"each family its own, sorted, once, without host bits",
			ranges("10.1.2.3/8", "192.0.2.0/24", "10.0.0.0/8", "fd00::1/16"), ranges("10.0.0.0/8", "192.0.2.0/24"), ranges("fd00::/16")},
		{"those of the other family leave this one open", ranges("fd00::/16"), nil, ranges("fd00::/16")},
		{"one that covers everything opens its family", ranges("10.0.0.0/8", "0.0.0.0/0", "fd00::/16"), nil, ranges("fd00::/16")},
		{"two halves are not everything in one", ranges("0.0.0.0/1", "128.0.0.0/1"), ranges("0.0.0.0/1", "128.0.0.0/1"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			comp := compiled(aService("ns/web", balanced, func(s *service.Service) { s.SourceRanges = c.in }))
			for family, want := range map[service.Family][]netip.Prefix{service.IPv4: c.four, service.IPv6: c.six} {
				p := port(t, comp, "ns/web", "http", family)
				if !slices.Equal(p.SourceRanges, want) {
					t.Errorf("the %v ranges are %v, want %v", family, p.SourceRanges, want)
				}
				for _, f := range p.Frontends {
					if guard := f.Kind == LoadBalancer && want != nil; f.GuardSources != guard {
						t.Errorf("%v %v: guarded is %v, want %v", f.Kind, f.Addr, f.GuardSources, guard)
					}
				}
			}
		})
	}
}

func TestServicePortsAreIndependent(t *testing.T) {
	c := compiled(aService("ns/web", func(s *service.Service) {
		s.Affinity = time.Hour
		s.Ports = []service.Port{{Name: "http", Protocol: service.TCP, Port: 80}, {Name: "dns", Protocol: service.UDP, Port: 80}, {Name: "rtp", Protocol: service.SCTP, Port: 80}}
	}))
	for _, id := range []PortID{{named("ns/web"), "http", service.TCP, service.IPv4}, {named("ns/web"), "dns", service.UDP, service.IPv4}, {named("ns/web"), "rtp", service.SCTP, service.IPv4}} {
		if p := c.Port(id); p == nil || p.Affinity != time.Hour || len(p.Frontends) != 1 || p.Frontends[0].Protocol != id.Protocol {
			t.Errorf("%v is %+v", id, p)
		}
	}
}

func TestServiceChangesAndItsPortsFollow(t *testing.T) {
	c := compiled(aService("ns/web", balanced), aSlice("ns/1", "web", ep("10.0.0.1")))
	for _, step := range []struct {
		name   string
		change func(*service.Service)
		want   string
	}{
		{"nothing", func(*service.Service) {}, ""},
		{"what is only shown", func(s *service.Service) { s.Selector = "app=web" }, ""},
		{"affinity", func(s *service.Service) { s.Affinity = time.Hour }, "ns/web:http:IPv4 ns/web:http:IPv6"},
		{"back", func(*service.Service) {}, "ns/web:http:IPv4 ns/web:http:IPv6"},
		{"ranges of one family", func(s *service.Service) { s.SourceRanges = ranges("10.0.0.0/8") }, "ns/web:http:IPv4"},
		{"one family gone", func(s *service.Service) { s.ClusterIPs = addrs("10.96.0.1") }, "-ns/web:http:IPv6 ns/web:http:IPv4"},
		{"another name of the port", func(s *service.Service) { s.Ports[0].Name, s.ClusterIPs = "www", addrs("10.96.0.1") }, "-ns/web:http:IPv4 ns/web:www:IPv4"},
		{"ExternalName", func(s *service.Service) { s.Type = service.ExternalName }, "-ns/web:www:IPv4"},
		{"and served again", func(s *service.Service) { s.ClusterIPs = addrs("10.96.0.1") }, "ns/web:http:IPv4"},
	} {
		expect(t, step.name+": what changed", changed(c.Apply(batch(aService("ns/web", balanced, step.change)))), step.want)
	}
	expect(t, "the choice", sets(http(t, c)), "cluster[10.0.0.1] local[]")
}

// Who has a frontend that several claim.

func claimant(name, clusterIP string, created int64) *service.Service {
	return aService(name, func(s *service.Service) {
		s.Type, s.Created = service.NodePort, time.Unix(created, 0)
		s.ClusterIPs, s.Ports[0].NodePort = addrs(clusterIP), 30080
	})
}

func holders(t *testing.T, c *Compiler, key string) string {
	t.Helper()
	var out []string
	for p := range c.Ports() {
		for _, f := range p.Frontends {
			if f.Addr.String() == key {
				out = append(out, p.ID.Service.String()+":"+p.ID.Port)
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestOlderServiceKeepsAFrontend(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b *service.Service
	}{
		{"the older", claimant("ns/z", "10.96.0.1", 1), claimant("ns/a", "10.96.0.2", 2)},
		{"of the same age the first by name", claimant("ns/a", "10.96.0.1", 1), claimant("ns/b", "10.96.0.2", 1)},
		{"of the same age the first by namespace", claimant("a/z", "10.96.0.1", 1), claimant("b/a", "10.96.0.2", 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			winner, loser := c.a.Name.String(), c.b.Name.String()
			for _, order := range [][]Update{{batch(c.a, c.b)}, {batch(c.a), batch(c.b)}, {batch(c.b), batch(c.a)}} {
				comp := newCompiler()
				for _, u := range order {
					comp.Apply(u)
				}
				expect(t, "who has the node port", holders(t, comp, "0.0.0.0:30080"), winner+":http")
				expect(t, "who has the loser's own address", holders(t, comp, "10.96.0.2:80"), loser+":http")
				if got := problems(comp); !strings.HasPrefix(got, "frontend-conflict Service "+loser+": ") ||
					!strings.Contains(got, winner) || !strings.Contains(got, "0.0.0.0:30080") || strings.Contains(got, "\n") {
					t.Errorf("the problem is %q: want one, that names %s, %s and the frontend", got, loser, winner)
				}
			}
		})
	}
}

func TestFrontendPassesOnInOneApply(t *testing.T) {
	old, young := claimant("ns/old", "10.96.0.1", 1), claimant("ns/young", "10.96.0.2", 2)
	moved := func(s *service.Service, nodePort uint16) *service.Service {
		next := *s
		next.Ports = []service.Port{{Name: "http", Protocol: service.TCP, Port: 80, NodePort: nodePort}}
		return &next
	}
	for _, c := range []struct {
		name    string
		start   []any
		update  Update
		changes string
		holders string
	}{
		{"when the winner goes", []any{old, young}, batch("-ns/old"), "-ns/old:http:IPv4 ns/young:http:IPv4", "ns/young:http"},
		{"when the winner lets go", []any{old, young}, batch(moved(old, 0)), "ns/old:http:IPv4 ns/young:http:IPv4", "ns/young:http"},
		{"when it moves from one to the other", []any{old, moved(young, 0)}, batch(moved(old, 0), young), "ns/old:http:IPv4 ns/young:http:IPv4", "ns/young:http"},
		{"when two swap", []any{old, moved(young, 30081)}, batch(moved(old, 30081), moved(young, 30080)), "ns/old:http:IPv4 ns/young:http:IPv4", "ns/young:http"},
	} {
		t.Run(c.name, func(t *testing.T) {
			comp := compiled(c.start...)
			changes := comp.Apply(c.update)
			expect(t, "what changed", changed(changes), c.changes)
			expect(t, "who has the node port", holders(t, comp, "0.0.0.0:30080"), c.holders)
			expect(t, "the problem, mended,", problems(comp), "")
		})
	}
}

func TestWinnerThatTurnsOutYoungerLoses(t *testing.T) {
	c := compiled(claimant("ns/a", "10.96.0.1", 1), claimant("ns/b", "10.96.0.2", 2))
	expect(t, "what changed", changed(c.Apply(batch(claimant("ns/a", "10.96.0.1", 3)))), "ns/a:http:IPv4 ns/b:http:IPv4")
	expect(t, "who has the node port", holders(t, c, "0.0.0.0:30080"), "ns/b:http")
	expect(t, "the problem", problems(c), `frontend-conflict Service ns/a: NodePort 0.0.0.0:30080/TCP of port "http" is not served: `+
		`Service ns/b, the older or of the same age the first by name, has it; give one of them another address or port`)
}

func TestTwoPortsOfOneServiceCannotShareANodePort(t *testing.T) {
	c := compiled(aService("ns/web", func(s *service.Service) {
		s.Type = service.NodePort
		s.Ports = []service.Port{{Name: "b", Protocol: service.TCP, Port: 81, NodePort: 30080}, {Name: "a", Protocol: service.TCP, Port: 80, NodePort: 30080}}
	}))
	expect(t, "who has the node port", holders(t, c, "0.0.0.0:30080"), "ns/web:a")
	expect(t, "the problem", problems(c),
		`frontend-conflict Service ns/web: NodePort 0.0.0.0:30080/TCP of port "b" is not served: port "a" of the same Service has it; give one of them another address or port`)
}
