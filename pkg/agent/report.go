// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// Status implements api.Provider.
func (a *Agent) Status() api.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := api.Status{
		Meta:    api.Meta{APIVersion: api.Version, Kind: "Status"},
		Version: a.cfg.Version, PID: os.Getpid(), Started: a.started,
		Node: a.node.Name, Zone: a.node.Zone, Kernel: hostRelease(), Missing: a.missing,
		Source: a.cfg.Mode, Resources: a.queue.Status(), Synced: a.synced,
		CgroupRoot: a.loader.CgroupRoot(),
		Hooks:      loader.Attachments(a.cfg.Options.BPFFSRoot),
		Devices:    append([]loader.DeviceStatus{}, a.devices...),
		Flows:      a.flows / 2,
		Services:   map[string]int{},
		Tables:     a.reconciler.Stats(), Problems: a.problems.all(), IgnoredConfig: a.cfg.Options.Ignored,
		Degraded: []string{},
		Programming: api.Programming{
			Changes: a.changes, Last: a.programming.last,
			P50: a.programming.quantile(0.5).Seconds(), P99: a.programming.quantile(0.99).Seconds(),
		},
		Denied: []api.Denied{},
	}
	for svc := range a.compiler.Services() {
		s.Services[shownType(svc)]++
	}
	for p := range a.compiler.Ports() {
		for pos := range int32(p.Positions()) {
			switch p.Backend(pos).State {
			case compile.Active:
				s.Backends.Active++
			case compile.Draining:
				s.Backends.Draining++
			}
		}
	}
	if set := a.reconciler.Tables(); set != nil {
		if denied, err := set.Denied(); err == nil {
			for _, d := range denied {
				s.Denied = append(s.Denied, api.Denied(d))
			}
		}
	}
	s.Degraded = append(s.Degraded, degraded(&s)...)
	return s
}

// degraded names what keeps the dataplane from being whole.
func degraded(s *api.Status) []string {
	var out []string
	if !s.Synced {
		out = append(out, "not everything has been seen yet: tables are as an earlier agent left them")
	}
	for _, h := range s.Hooks {
		if !h.Attached && s.Synced {
			out = append(out, fmt.Sprintf("hook %s is not attached: %s", h.Hook, h.Error))
		}
	}
	for _, r := range s.Resources {
		if !r.Connected {
			out = append(out, fmt.Sprintf("%s are not followed since %s: %s", r.Resource, r.Since.Format(time.TimeOnly), r.Error))
		}
	}
	switch n := len(s.Problems); n {
	case 0:
	case 1:
		out = append(out, "1 problem in what is to be served")
	default:
		out = append(out, fmt.Sprintf("%d problems in what is to be served", n))
	}
	return out
}

func shownType(s *service.Service) string {
	if s.Headless {
		return "Headless"
	}
	return s.Type.String()
}

// Services implements api.Provider.
func (a *Agent) Services() api.ServiceList {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := api.ServiceList{Meta: api.Meta{APIVersion: api.Version, Kind: "ServiceList"}, Items: []api.Service{}}
	for svc := range a.compiler.Services() {
		list.Items = append(list.Items, a.describe(svc))
	}
	slices.SortFunc(list.Items, func(x, y api.Service) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	return list
}

func (a *Agent) describe(svc *service.Service) api.Service {
	out := api.Service{
		Namespace: svc.Namespace, Name: svc.Name.Name, Type: svc.Type.String(),
		Headless: svc.Headless, ExternalName: svc.ExternalName, ServedBy: svc.ProxyName,
		ClusterIPs: texts(svc.ClusterIPs), ExternalIPs: texts(svc.ExternalIPs),
		Ingress: append(texts(svc.LoadBalancerIPs), svc.LoadBalancerHostnames...), ProxyIngress: texts(svc.ProxyIPs),
		Ports: []api.Port{}, Selector: svc.Selector, Created: svc.Created, Endpoints: []api.Endpoint{},
	}
	for _, p := range svc.Ports {
		out.Ports = append(out.Ports, api.Port{Name: p.Name, Port: p.Port, Protocol: p.Protocol.String(), NodePort: p.NodePort, TargetPort: p.TargetPort})
	}
	for _, e := range a.compiler.Explain(svc.Name) {
		out.Endpoints = append(out.Endpoints, api.Endpoint{
			Address: addressText(e.Addr), PortName: e.Port, Protocol: e.Protocol.String(), Target: e.Endpoint.Target,
			Node: e.Endpoint.NodeName, Zone: e.Endpoint.Zone,
			Ready: e.Endpoint.Ready, Serving: e.Endpoint.Serving, Terminating: e.Endpoint.Terminating,
			InCluster: e.InCluster, InLocal: e.InLocal, Reason: e.Reason,
		})
	}
	return out
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// Tables implements api.Provider.
func (a *Agent) Tables() api.Tables {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := api.Tables{Meta: api.Meta{APIVersion: api.Version, Kind: "Tables"}, Frontends: []api.Frontend{}, NodeAddrs: []string{}, ServiceCIDRs: []string{}, Owners: []string{}}
	for p := range a.compiler.Ports() {
		t.Frontends = append(t.Frontends, frontendsOf(p)...)
	}
	n := a.nodeTables()
	for addr := range n.NodePortAddrs {
		t.NodeAddrs = append(t.NodeAddrs, addr.String())
	}
	for _, c := range n.ServiceCIDRs {
		t.ServiceCIDRs = append(t.ServiceCIDRs, c.String())
	}
	t.Owners = a.owners(n.Own())
	slices.Sort(t.NodeAddrs)
	return t
}

// owners tells what the addresses of all frontends are, from what was compiled
// alone: portolan verify compares it with what was written.
func (a *Agent) owners(own map[netip.Addr]bool) []string {
	owner := map[netip.Addr]uint32{}
	for p := range a.compiler.Ports() {
		for _, f := range p.Frontends {
			addr := f.Addr.Addr()
			value := maps.AddressPublished
			switch {
			case f.Kind == compile.NodePort:
				continue
			case f.Kind == compile.Elsewhere:
				value = maps.AddressElsewhere
			case f.Kind == compile.ClusterIP:
				value = maps.AddressOurs
			case own[addr]:
				continue
			}
			// Who has an address for more than publishing it comes first.
			if have, ok := owner[addr]; !ok || have == maps.AddressPublished || value == maps.AddressElsewhere {
				owner[addr] = value
			}
		}
	}
	out := make([]string, 0, len(owner))
	for addr, value := range owner {
		out = append(out, addr.String()+" "+maps.OwnerName(value))
	}
	slices.Sort(out)
	return out
}

func frontendsOf(p *compile.Port) []api.Frontend {
	var out []api.Frontend
	for _, f := range p.Frontends {
		if f.Kind == compile.Elsewhere {
			continue
		}
		x := api.Frontend{
			Address: f.Addr.String(), Protocol: f.Protocol.String(), Kind: f.Kind.String(),
			Service: p.ID.Service.String(), PortName: p.ID.Port, Affinity: int(p.Affinity / time.Second),
			Internal: scopeOf(p, f.Internal), External: scopeOf(p, f.External),
		}
		if f.GuardSources {
			for _, r := range p.SourceRanges {
				x.Sources = append(x.Sources, r.String())
			}
		}
		out = append(out, x)
	}
	return out
}

func scopeOf(p *compile.Port, policy compile.Policy) api.Scope {
	positions := p.Cluster
	if policy == compile.Local {
		positions = p.Local
	}
	s := api.Scope{Backends: make([]string, 0, len(positions))}
	for _, pos := range positions {
		s.Backends = append(s.Backends, p.Backend(pos).Addr.String())
	}
	slices.Sort(s.Backends)
	if len(positions) == 0 {
		s.Empty = maps.EmptyDrop
		if p.Refuse {
			s.Empty = maps.EmptyRefuse
		}
	}
	return s
}

// addressText leaves a port out that there is none of: endpoints of a headless
// Service need not have any.
func addressText(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}
