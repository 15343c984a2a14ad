// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

var web = service.Name{Namespace: "prod", Name: "web"}

// loadBalancer is a dual-stack Service with two ports and a health check.
func loadBalancer(edits ...func(*service.Service)) *service.Service {
	s := &service.Service{
		Name: web, Type: service.LoadBalancer, ExternalLocal: true, HealthCheckNodePort: 32100,
		Created:    time.Unix(1000, 0),
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::10")},
		Ports: []service.Port{
			{Name: "http", Protocol: service.TCP, Port: 80, NodePort: 30080},
			{Name: "dns", Protocol: service.UDP, Port: 53, NodePort: 30053},
		},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func TestOnlyLoadBalancersWithPolicyLocalHaveAHealthCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*service.Service)
		want bool
	}{
		"LoadBalancer, Local":        {func(*service.Service) {}, true},
		"policy Cluster":             {func(s *service.Service) { s.ExternalLocal = false }, false},
		"type NodePort":              {func(s *service.Service) { s.Type = service.NodePort }, false},
		"type ClusterIP":             {func(s *service.Service) { s.Type = service.ClusterIP }, false},
		"no port":                    {func(s *service.Service) { s.HealthCheckNodePort = 0 }, false},
		"headless":                   {func(s *service.Service) { s.Headless = true }, false},
		"served by another proxy":    {func(s *service.Service) { s.ProxyName = "other" }, false},
		"no address":                 {func(s *service.Service) { s.ClusterIPs = nil }, false},
		"internal policy is ignored": {func(s *service.Service) { s.InternalLocal = true }, true},
	} {
		if got := Needed(loadBalancer(c.edit)); got != c.want {
			t.Errorf("%s: a health check is needed: %v, want %v", name, got, c.want)
		}
	}
	if Needed(nil) {
		t.Error("a Service that is gone needs a health check")
	}
}

// cluster is the compiler and the checks of node "here".
type cluster struct {
	compiler *compile.Compiler
	checks   *Checks
}

func newCluster() *cluster {
	return &cluster{compile.New(compile.Config{Node: service.Node{Name: "here"}}), NewChecks()}
}

// apply takes an update as the agent does; it tells whether checks changed.
func (c *cluster) apply(u compile.Update) bool {
	return c.checks.Update(u.Services, c.compiler.Apply(u), c.compiler.Port)
}

func withService(s *service.Service) compile.Update {
	return compile.Update{Services: map[service.Name]*service.Service{s.Name: s}}
}

// slice is an IPv4 slice of web, with a port 80 and a port 53.
func slice(name string, endpoints ...service.Endpoint) compile.Update {
	n := service.Name{Namespace: web.Namespace, Name: name}
	return compile.Update{Slices: map[service.Name]*service.EndpointSlice{n: {
		Name: n, Service: web.Name, Family: service.IPv4, Endpoints: endpoints,
		Ports: []service.SlicePort{{Name: "http", Protocol: service.TCP, Port: 8080}, {Name: "dns", Protocol: service.UDP, Port: 5353}},
	}}}
}

func endpoint(addr, node string, conditions string) service.Endpoint {
	e := service.Endpoint{Addr: netip.MustParseAddr(addr), NodeName: node}
	switch conditions {
	case "ready":
		e.Ready, e.Serving = true, true
	case "serving":
		e.Serving, e.Terminating = true, true
	case "terminating":
		e.Terminating = true
	case "published": // publishNotReadyAddresses
		e.Ready, e.Serving, e.Terminating = true, true, true
	}
	return e
}

func TestACheckCountsDistinctReadyAddressesOfThisNode(t *testing.T) {
	t.Parallel()
	a, b, z := "10.244.1.1", "10.244.1.2", "10.244.2.1"
	for name, c := range map[string]struct {
		slices [][]service.Endpoint
		want   int
	}{
		"no endpoints":                           {nil, 0},
		"two here, one elsewhere":                {[][]service.Endpoint{{endpoint(a, "here", "ready"), endpoint(b, "here", "ready"), endpoint(z, "there", "ready")}}, 2},
		"none here":                              {[][]service.Endpoint{{endpoint(z, "there", "ready")}}, 0},
		"one is not ready":                       {[][]service.Endpoint{{endpoint(a, "here", "ready"), endpoint(b, "here", "")}}, 1},
		"terminating but serving counts nothing": {[][]service.Endpoint{{endpoint(a, "here", "serving")}}, 0},
		"terminating counts nothing":             {[][]service.Endpoint{{endpoint(a, "here", "terminating")}}, 0},
		"ready is the whole truth":               {[][]service.Endpoint{{endpoint(a, "here", "published")}}, 1},
		"an address in two slices counts once":   {[][]service.Endpoint{{endpoint(a, "here", "ready")}, {endpoint(a, "here", "ready"), endpoint(b, "here", "ready")}}, 2},
		"an endpoint without a node":             {[][]service.Endpoint{{endpoint(a, "", "ready")}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := newCluster()
			cluster.apply(withService(loadBalancer()))
			for i, endpoints := range c.slices {
				cluster.apply(slice(fmt.Sprintf("web-%d", i), endpoints...))
			}
			got, problems := cluster.checks.List()
			want := []Check{{web, service.IPv4, 32100, c.want}, {web, service.IPv6, 32100, 0}}
			if diff := cmp.Diff(want, got); diff != "" || len(problems) > 0 {
				t.Errorf("checks differ (-want +got):\n%s%v", diff, problems)
			}
		})
	}
}

func TestChecksFollowServicesAndEndpoints(t *testing.T) {
	t.Parallel()
	c := newCluster()
	local := func(want ...Check) {
		t.Helper()
		got, _ := c.checks.List()
		if !slices.Equal(got, want) {
			t.Errorf("checks are %v, want %v", got, want)
		}
	}
	c.apply(slice("web-0", endpoint("10.244.1.1", "here", "ready")))
	local()
	v4 := func(s *service.Service) { s.ClusterIPs = s.ClusterIPs[:1] }
	c.apply(withService(loadBalancer(v4)))
	local(Check{web, service.IPv4, 32100, 1})
	c.apply(slice("web-0", endpoint("10.244.1.1", "here", "serving")))
	local(Check{web, service.IPv4, 32100, 0})
	c.apply(withService(loadBalancer(v4, func(s *service.Service) { s.HealthCheckNodePort = 32200 })))
	local(Check{web, service.IPv4, 32200, 0})
	c.apply(withService(loadBalancer(v4, func(s *service.Service) { s.ExternalLocal = false })))
	local()
	c.apply(withService(loadBalancer()))
	local(Check{web, service.IPv4, 32100, 0}, Check{web, service.IPv6, 32100, 0})
	c.apply(compile.Update{Node: &service.Node{Name: "there"}})
	c.apply(slice("web-0", endpoint("10.244.1.1", "there", "ready")))
	local(Check{web, service.IPv4, 32100, 1}, Check{web, service.IPv6, 32100, 0})
	c.apply(compile.Update{Services: map[service.Name]*service.Service{web: nil}})
	local()
	if c.apply(slice("web-0", endpoint("10.244.1.9", "here", "ready"))) {
		t.Error("an endpoint of a Service without a check changes checks")
	}
}

func TestOfTwoServicesWithOneHealthPortTheOlderIsAnswered(t *testing.T) {
	t.Parallel()
	c := newCluster()
	younger := loadBalancer(func(s *service.Service) {
		s.Name.Name, s.Created = "api", time.Unix(2000, 0)
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.11")}
		s.Ports = s.Ports[:1]
		s.Ports[0].NodePort = 30081
	})
	c.apply(withService(younger))
	c.apply(withService(loadBalancer()))
	got, problems := c.checks.List()
	for _, check := range got {
		if check.Service != web {
			t.Errorf("%v is answered", check)
		}
	}
	want := []service.Problem{{Object: "Service prod/api", Reason: service.ReasonHealthPort,
		Message: "healthCheckNodePort 32100 is not answered: Service prod/web, which is older, has it; choose another"}}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems differ (-want +got):\n%s", diff)
	}
	c.apply(compile.Update{Services: map[service.Name]*service.Service{web: nil}})
	if got, problems = c.checks.List(); len(got) != 1 || got[0].Service != younger.Name || len(problems) > 0 {
		t.Errorf("after the older one is gone, checks are %v, problems %v", got, problems)
	}
}

func TestHealthChecksAreAnsweredWhereNodePortsAre(t *testing.T) {
	t.Parallel()
	all := []string{"127.0.0.1", "192.0.2.1", "192.0.2.2", "::1", "2001:db8::1"}
	for name, c := range map[string]struct{ serving, all, want []string }{
		"every address of both families": {all, all, []string{"0.0.0.0", "::"}},
		"one of IPv4, all of IPv6":       {[]string{"192.0.2.1", "::1", "2001:db8::1"}, all, []string{"192.0.2.1", "::"}},
		"all but loopback":               {[]string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}, all, []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}},
		"a node without IPv6":            {all[:3], all[:3], []string{"0.0.0.0"}},
		"none":                           {nil, all, nil},
	} {
		serving := map[netip.Addr]bool{}
		for _, a := range addrs(c.serving...) {
			serving[a] = a.IsLoopback()
		}
		if got := Addresses(serving, addrs(c.all...)); !slices.Equal(got, addrs(c.want...)) {
			t.Errorf("%s: answered on %v, want %v", name, got, c.want)
		}
	}
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}
