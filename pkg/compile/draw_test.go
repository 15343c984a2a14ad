// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"pgregory.net/rapid"

	"portolan.dev/portolan/pkg/service"
)

var someNames = []service.Name{{Namespace: "a", Name: "one"}, {Namespace: "a", Name: "two"}, {Namespace: "b", Name: "one"}}

// drawUpdate changes a few objects, in ref and in the returned update alike.
func drawUpdate(t *rapid.T, ref *reference) Update {
	u := Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.EndpointSlice{}}
	for range rapid.IntRange(1, 4).Draw(t, "edits") {
		switch rapid.IntRange(0, 15).Draw(t, "what") {
		case 9:
			name := rapid.SampledFrom(someNames).Draw(t, "gone")
			u.Services[name] = nil
			delete(ref.services, name)
		case 0, 1, 2:
			s := drawService(t)
			u.Services[s.Name], ref.services[s.Name] = s, s
		case 8:
			name := drawSlice(t).Name
			u.Slices[name] = nil
			delete(ref.slices, name)
		case 3, 4, 5, 6:
			s := drawSlice(t)
			u.Slices[s.Name], ref.slices[s.Name] = s, s
		case 10, 11, 12, 13, 14, 15:
			if s := drawEdit(t, ref); s != nil {
				u.Slices[s.Name], ref.slices[s.Name] = s, s
			}
		case 7:
			ref.node = service.Node{Name: rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node"), Zone: rapid.SampledFrom([]string{"", "z1", "z2"}).Draw(t, "zone")}
			node := ref.node
			u.Node = &node
		}
	}
	return u
}

// drawEdit is a slice that exists with one endpoint gone, come, or different:
// what nearly every update of a cluster is.
func drawEdit(t *rapid.T, ref *reference) *service.EndpointSlice {
	if len(ref.slices) == 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(ref.slices), func(a, b service.Name) int { return cmp.Compare(a.String(), b.String()) })
	next := *ref.slices[rapid.SampledFrom(names).Draw(t, "edited")]
	next.Endpoints = slices.Clone(next.Endpoints)
	n := len(next.Endpoints)
	switch at := rapid.IntRange(0, max(0, n-1)).Draw(t, "at"); {
	case n > 0 && rapid.IntRange(0, 9).Draw(t, "moves") == 9:
		next.Endpoints[at].NodeName = rapid.SampledFrom([]string{"n1", "n2", ""}).Draw(t, "other node")
	case n == 0 || rapid.Bool().Draw(t, "comes"):
		next.Endpoints = slices.Insert(next.Endpoints, rapid.IntRange(0, n).Draw(t, "before"), drawEndpoint(t, next.Family))
	case rapid.Bool().Draw(t, "goes"):
		next.Endpoints = slices.Delete(next.Endpoints, at, at+1)
	default:
		addr := next.Endpoints[at].Addr
		next.Endpoints[at] = drawEndpoint(t, next.Family)
		next.Endpoints[at].Addr = addr
	}
	return &next
}

func drawService(t *rapid.T) *service.Service {
	s := &service.Service{
		Name:    rapid.SampledFrom(someNames).Draw(t, "service"),
		Created: time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "created")), 0),
		Type:    rapid.SampledFrom([]service.Type{service.ClusterIP, service.NodePort, service.NodePort, service.LoadBalancer, service.LoadBalancer, service.ExternalName}).Draw(t, "type"),
	}
	s.Headless = rapid.IntRange(0, 9).Draw(t, "headless") == 9
	if rapid.IntRange(0, 9).Draw(t, "proxy") == 9 {
		s.ProxyName = "other"
	}
	s.InternalLocal, s.ExternalLocal = rapid.Bool().Draw(t, "iTP"), rapid.Bool().Draw(t, "eTP")
	s.Affinity = rapid.SampledFrom([]time.Duration{0, time.Second}).Draw(t, "affinity")
	s.Algorithm = rapid.SampledFrom([]service.Algorithm{service.DefaultAlgorithm, service.Random, service.Maglev}).Draw(t, "algorithm")
	s.Forwarding = rapid.SampledFrom([]service.Forwarding{service.DefaultForwarding, service.SNAT, service.DSR, service.Hybrid}).Draw(t, "forwarding")
	s.ClusterIPs = drawAddrs(t, "cluster", 4)
	s.LoadBalancerIPs = drawAddrs(t, "ingress", 2)
	s.ExternalIPs = drawAddrs(t, "external", 2)
	for _, r := range []string{"0.0.0.0/0", "192.0.2.0/24", "198.51.100.0/24", "fd00::/16"} {
		if rapid.IntRange(0, 4).Draw(t, "range") == 4 {
			s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(r))
		}
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "ports") {
		p := service.Port{Name: []string{"", "p", "q"}[i], Protocol: rapid.SampledFrom([]service.Protocol{service.TCP, service.TCP, service.TCP, service.UDP}).Draw(t, "protocol"), Port: uint16(80 + i)}
		if rapid.Bool().Draw(t, "nodeport") {
			p.NodePort = uint16(30000 + 10*i + rapid.IntRange(0, 1).Draw(t, "number"))
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func drawAddrs(t *rapid.T, what string, odds int) []netip.Addr {
	var out []netip.Addr
	for _, form := range []string{"10.96.0.%d", "fd00:96::%d"} {
		if rapid.IntRange(0, odds).Draw(t, what) < odds {
			out = append(out, netip.MustParseAddr(fmt.Sprintf(form, rapid.IntRange(1, 3).Draw(t, "host"))))
		}
	}
	return out
}

func drawSlice(t *rapid.T) *service.EndpointSlice {
	owner := rapid.SampledFrom(someNames).Draw(t, "owner")
	s := &service.EndpointSlice{
		Name:    service.Name{Namespace: owner.Namespace, Name: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "slice")},
		Service: owner.Name, Family: rapid.SampledFrom([]service.Family{service.IPv4, service.IPv6}).Draw(t, "family"),
		Headless: rapid.IntRange(0, 9).Draw(t, "headless") == 9,
		Weight:   rapid.SampledFrom([]uint32{0, 0, 1, 3}).Draw(t, "weight"),
	}
	for range rapid.IntRange(1, 3).Draw(t, "ports") {
		s.Ports = append(s.Ports, service.SlicePort{
			Name:     rapid.SampledFrom([]string{"", "p"}).Draw(t, "port name"),
			Protocol: rapid.SampledFrom([]service.Protocol{service.TCP, service.TCP, service.TCP, service.UDP}).Draw(t, "protocol"),
			Port:     uint16(8080 + rapid.IntRange(0, 1).Draw(t, "target")),
		})
	}
	for range rapid.IntRange(1, 6).Draw(t, "endpoints") {
		s.Endpoints = append(s.Endpoints, drawEndpoint(t, s.Family))
	}
	return s
}

func drawEndpoint(t *rapid.T, family service.Family) service.Endpoint {
	forms := map[service.Family]string{service.IPv4: "10.0.0.%d", service.IPv6: "fd00::%d"}
	form := forms[family]
	if rapid.IntRange(0, 19).Draw(t, "wrong") == 19 {
		form = forms[service.IPv4+service.IPv6-family]
	}
	hints := rapid.SampledFrom([][]string{nil, {"z1"}, {"z2"}, {"z1", "z2"}})
	nodes := rapid.SampledFrom([][]string{nil, nil, {"n1"}, {"n2"}})
	return service.Endpoint{
		Addr:  netip.MustParseAddr(fmt.Sprintf(form, rapid.IntRange(1, 8).Draw(t, "address"))),
		Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving"), Terminating: rapid.Bool().Draw(t, "terminating"),
		NodeName: rapid.SampledFrom([]string{"n1", "n2", ""}).Draw(t, "node"), ZoneHints: hints.Draw(t, "zones"), NodeHints: nodes.Draw(t, "nodes"),
	}
}
