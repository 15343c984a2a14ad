// SPDX-License-Identifier: Apache-2.0

// Package health answers those who ask whether traffic should be sent here:
// load balancers, about the endpoints that a Service has on this node
// (healthCheckNodePort) and about this node as a whole (/healthz); and the
// kubelet, about this agent (/livez, /readyz).
//
// What is answered is decided by pure functions; servers only speak HTTP. The
// bodies, headers and rules are kube-proxy's, because load balancers and their
// controllers read them. It imports pkg/service and pkg/compile for what they
// tell of Services and endpoints, and the standard library. The invariant it
// guards: no answer is better than the truth, and a port that cannot be
// answered on is named.
package health

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// Check is the health check of one Service in one IP family: what a load
// balancer may ask this node.
type Check struct {
	Service service.Name
	Family  service.Family
	Port    uint16
	// Local is the number of addresses on this node that have ready endpoints.
	Local int
}

// Needed tells whether a Service has a health check: load balancers ask only
// where a node without endpoints would drop what it is sent.
func Needed(s *service.Service) bool {
	return s != nil && s.Type == service.LoadBalancer && s.ExternalLocal && s.HealthCheckNodePort != 0 &&
		!s.Headless && s.ProxyName == "" && len(s.ClusterIPs) > 0
}

// Checks follows the Services that have a health check. It is for one
// goroutine at a time.
type Checks struct {
	services map[service.Name]*checked
}

// checked is a Service with its local endpoints, by family.
type checked struct {
	object *service.Service
	local  map[service.Family]int
}

// NewChecks returns Checks without any Service.
func NewChecks() *Checks { return &Checks{services: map[service.Name]*checked{}} }

// Update takes what changed, once it is compiled, and tells whether List may
// be another now. The work is in proportion to the change. port gives a
// compiled service port, nil for none.
func (c *Checks) Update(services map[service.Name]*service.Service, changes []compile.Change, port func(compile.PortID) *compile.Port) bool {
	touched := map[service.Name]bool{}
	changed := false
	for name, s := range services {
		if Needed(s) {
			c.services[name] = &checked{object: s}
			touched[name] = true
		} else if c.services[name] != nil {
			delete(c.services, name)
			changed = true
		}
	}
	for i := range changes {
		if name := changes[i].ID.Service; c.services[name] != nil {
			touched[name] = true
		}
	}
	for name := range touched {
		entry := c.services[name]
		entry.local = localReady(entry.object, port)
	}
	return changed || len(touched) > 0
}

// localReady counts the addresses of ready endpoints on this node, by family.
// An address that serves several ports counts once, and an endpoint that is
// terminating is not ready, whether it still serves or not.
func localReady(s *service.Service, port func(compile.PortID) *compile.Port) map[service.Family]int {
	local := map[service.Family]int{}
	for _, family := range families(s) {
		seen := map[netip.Addr]bool{}
		for _, sp := range s.Ports {
			p := port(compile.PortID{Service: s.Name, Port: sp.Name, Protocol: sp.Protocol, Family: family})
			if p == nil {
				continue
			}
			for pos := range int32(p.Positions()) {
				if b := p.Backend(pos); b.OnNode && b.State == compile.Active {
					seen[b.Addr.Addr()] = true
				}
			}
		}
		local[family] = len(seen)
	}
	return local
}

// families are those that a Service has addresses of.
func families(s *service.Service) []service.Family {
	var out []service.Family
	for _, a := range s.ClusterIPs {
		if f := service.FamilyOf(a); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// List returns the checks to be answered, by port and family. Of two Services
// that claim one port the older has it; the other is a problem.
func (c *Checks) List() ([]Check, []service.Problem) {
	entries := make([]*checked, 0, len(c.services))
	for _, entry := range c.services {
		entries = append(entries, entry)
	}
	slices.SortFunc(entries, func(a, b *checked) int {
		return cmp.Or(a.object.Created.Compare(b.object.Created),
			cmp.Compare(a.object.Namespace, b.object.Namespace), cmp.Compare(a.object.Name.Name, b.object.Name.Name))
	})
	var out []Check
	var problems []service.Problem
	owners := map[uint16]service.Name{}
	for _, entry := range entries {
		s := entry.object
		if owner, taken := owners[s.HealthCheckNodePort]; taken {
			problems = append(problems, service.Problem{Object: "Service " + s.Name.String(), Reason: service.ReasonHealthPort,
				Message: fmt.Sprintf("healthCheckNodePort %d is not answered: Service %s, which is older, has it; choose another", s.HealthCheckNodePort, owner)})
			continue
		}
		owners[s.HealthCheckNodePort] = s.Name
		for _, family := range families(s) {
			out = append(out, Check{Service: s.Name, Family: family, Port: s.HealthCheckNodePort, Local: entry.local[family]})
		}
	}
	slices.SortFunc(out, func(a, b Check) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Family, b.Family))
	})
	return out, problems
}

// Addresses says where health checks are answered: on the addresses that serve
// NodePorts, or, for a family of which every address does, on the unspecified
// one, which takes in addresses to come. serving are those that serve
// NodePorts, all are the node's; the result is sorted.
func Addresses(serving map[netip.Addr]bool, all []netip.Addr) []netip.Addr {
	have, lacking := map[bool]bool{}, map[bool]bool{}
	for _, a := range all {
		have[a.Is4()] = true
		if _, ok := serving[a]; !ok {
			lacking[a.Is4()] = true
		}
	}
	var out []netip.Addr
	for is4, unspecified := range map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()} {
		if have[is4] && !lacking[is4] {
			out = append(out, unspecified)
			continue
		}
		for a := range serving {
			if a.Is4() == is4 {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
