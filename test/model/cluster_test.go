// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// cluster is the world that packets are tried in, in both families alike:
//
//	outside, the routers ── out0 ─┬─ node ── out2, its pods
//	                    the nodes ── out1
type cluster struct {
	*World
	sets []*set
}

// set is a Service with its endpoints, as the API has it and as the model does.
type set struct {
	spec  spec
	ports []*ServicePort
}

type spec struct {
	name                                string
	last                                int // of its addresses
	endpoints                           []string
	local, affinity, guarded, clusterIP bool
	own                                 bool // its external IP is this node's address
	sctpPort                            uint16
	forwarding                          service.Forwarding
	algorithm                           service.Algorithm
}

// Endpoints by name: pods here, on other nodes, behind a small path, behind a
// neighbour that is not resolved, and without a route.
var pods = map[string]string{
	"here1": "0 1", "here2": "0 2", "there1": "1 1", "there2": "1 2", "small": "2 1", "silent": "3 1", "lost": "4 1",
	"unnamed": "0 3", "outside": "1 3", // here and elsewhere, but their slices do not say so
}

var specs = []spec{
	{name: "web", last: 10, endpoints: []string{"here1", "here2", "there1", "there2", "small", "silent"}, sctpPort: 9},
	{name: "affine", last: 11, endpoints: []string{"here1", "here2", "there1", "there2", "unnamed"}, affinity: true, sctpPort: 9},
	{name: "local", last: 12, endpoints: []string{"here1", "here2", "there1"}, local: true, sctpPort: 9},
	{name: "remote", last: 13, endpoints: []string{"there1"}, local: true, sctpPort: 9},
	{name: "empty", last: 14, sctpPort: 9},
	{name: "guarded", last: 15, endpoints: []string{"here1", "there1"}, guarded: true, sctpPort: 9},
	{name: "lost", last: 16, endpoints: []string{"lost"}, sctpPort: 9},
	{name: "inner", last: 17, endpoints: []string{"here2", "there2"}, clusterIP: true, sctpPort: 9},
	{name: "sctp", last: 18, endpoints: []string{"here1", "there1"}, sctpPort: 99},
	{name: "unnamed", last: 24, endpoints: []string{"unnamed"}, sctpPort: 9},
	{name: "twin", last: 19, endpoints: []string{"here1", "there1"}, sctpPort: 9},
	{name: "direct", last: 20, endpoints: []string{"here1", "here2", "there1", "there2", "small", "silent", "unnamed"}, sctpPort: 9, forwarding: service.DSR},
	{name: "hybrid", last: 21, endpoints: []string{"here1", "there1"}, guarded: true, sctpPort: 9, forwarding: service.Hybrid},
	{name: "anycast", last: 25, endpoints: []string{"here1", "there1", "outside"}, own: true, sctpPort: 9, forwarding: service.DSR},
	{name: "maglev", last: 22, endpoints: []string{"here1", "here2", "there1"}, sctpPort: 9, algorithm: service.Maglev},
	{name: "direct-maglev", last: 23, endpoints: []string{"here2", "there1", "unnamed"}, sctpPort: 9, forwarding: service.DSR, algorithm: service.Maglev},
}

func v4(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

func newCluster() *cluster {
	c := &cluster{World: &World{FirstPort: 50000, LastPort: 50199}}
	for i := range 3 {
		c.Devices = append(c.Devices, &Device{XDPTarget: i < 2, Inward: i == 2})
	}
	outside, nodes, own := c.Devices[0], c.Devices[1], c.Devices[2]
	for _, six := range []bool{false, true} {
		a := func(four, sixth string) string {
			if six {
				return sixth
			}
			return four
		}
		onLink := func(d *Device, prefix, address string) {
			p, addr := netip.MustParsePrefix(prefix), netip.MustParseAddr(address)
			known := p.Addr()
			for range knownNeighbours {
				known = known.Next()
			}
			c.Routes = append(c.Routes, Route{To: p, Device: d, GatewayMAC: mac(d, 1), Known: known, MTU: 1500, Masquerade: addr},
				Route{To: netip.PrefixFrom(addr, addr.BitLen()), Device: d, Masquerade: addr, OnlyAddress: true})
		}
		via := func(d *Device, prefix, gateway string, mtu int, unresolved bool, own string) {
			g := netip.MustParseAddr(gateway)
			last := g.AsSlice()
			c.Routes = append(c.Routes, Route{To: netip.MustParsePrefix(prefix), Device: d, Gateway: g,
				GatewayMAC: mac(d, last[len(last)-1]), MTU: mtu, Unresolved: unresolved, Masquerade: netip.MustParseAddr(own)})
		}
		onLink(outside, a("10.0.0.0/24", "fd00:a::/64"), a("10.0.0.1", "fd00:a::1"))
		onLink(nodes, a("172.16.0.0/24", "fd00:b::/64"), a("172.16.0.1", "fd00:b::1"))
		onLink(own, a("10.1.0.0/24", "fd00:1:0::/64"), a("10.1.0.254", "fd00:1:0::fe"))
		here, there := a("10.0.0.1", "fd00:a::1"), a("172.16.0.1", "fd00:b::1")
		via(outside, a("0.0.0.0/0", "::/0"), a("10.0.0.254", "fd00:a::fe"), 1500, false, here)
		via(outside, a("198.51.101.0/24", "2001:db8:101::/64"), a("10.0.0.253", "fd00:a::fd"), 1300, false, here)
		via(outside, a("198.51.102.0/24", "2001:db8:102::/64"), a("10.0.0.252", "fd00:a::fc"), 1500, true, here)
		via(nodes, a("10.1.1.0/24", "fd00:1:1::/64"), a("172.16.0.200", "fd00:b::c8"), 1500, false, there)
		via(nodes, a("10.1.2.0/24", "fd00:1:2::/64"), a("172.16.0.201", "fd00:b::c9"), 1400, false, there)
		via(nodes, a("10.1.3.0/24", "fd00:1:3::/64"), a("172.16.0.202", "fd00:b::ca"), 1500, true, there)
		for _, unreachable := range []string{a("198.51.103.0/24", "2001:db8:103::/64"), a("10.1.4.0/24", "fd00:1:4::/64")} {
			c.Routes = append(c.Routes, Route{To: netip.MustParsePrefix(unreachable)})
		}
		c.NodePortAddrs = append(c.NodePortAddrs, netip.MustParseAddr(here))
		c.Inside = append(c.Inside, netip.MustParsePrefix(a("10.1.0.0/16", "fd00:1::/32")))
	}
	for _, s := range specs {
		c.sets = append(c.sets, c.add(s))
	}
	return c
}

// knownNeighbours are the first addresses of a network on a link.
const knownNeighbours = 20

func mac(_ *Device, last byte) [6]byte { return [6]byte{2, 0xaa, 0, 0, 0, last} }

func podAddr(name string, six bool) netip.Addr {
	var net, host int
	if _, err := fmt.Sscan(pods[name], &net, &host); err != nil {
		panic(err)
	}
	if six {
		return v4("fd00:1:%d::%d", net, host)
	}
	return v4("10.1.%d.%d", net, host)
}

// guard are the clients that a guarded Service admits.
var guard = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25"), netip.MustParsePrefix("2001:db8:100::/65")}

// set is the Service of a name.
func (c *cluster) set(name string) *set {
	for _, s := range c.sets {
		if s.spec.name == name {
			return s
		}
	}
	panic("no Service " + name)
}

// addresses of a Service by kind.
func (s spec) address(kind Kind, six bool) netip.Addr {
	net := map[Kind]int{LoadBalancer: 2, ExternalIP: 3}[kind]
	switch {
	case kind == ClusterIP && six:
		return v4("fd00:96::%x", s.last)
	case kind == ClusterIP:
		return v4("10.96.0.%d", s.last)
	case kind == NodePort && six:
		return netip.IPv6Unspecified()
	case kind == NodePort:
		return netip.IPv4Unspecified()
	case kind == ExternalIP && s.own && six:
		return v4("fd00:a::1")
	case kind == ExternalIP && s.own:
		return v4("10.0.0.1")
	case six:
		return v4("2001:db8:%d::%x", net, s.last)
	}
	return v4("203.0.%d.%d", net, s.last)
}

func (s spec) port(proto uint8, kind Kind) uint16 {
	number := map[uint8]uint16{TCP: 80, UDP: 80, SCTP: 9}[proto]
	if kind == NodePort {
		number += 30000 + 100*uint16(s.last)
	}
	return number
}

func (c *cluster) add(s spec) *set {
	out := &set{spec: s}
	for _, six := range []bool{false, true} {
		for _, proto := range []uint8{TCP, UDP, SCTP} {
			p := &ServicePort{Name: fmt.Sprint(s.name, proto, six), Local: s.local, Affinity: s.affinity,
				Direct: s.forwarding.Direct(service.Protocol(proto)), Maglev: s.algorithm == service.Maglev}
			number := uint16(8080)
			if proto == SCTP {
				number = s.sctpPort
			}
			for _, name := range s.endpoints {
				p.Endpoints = append(p.Endpoints, &Endpoint{Addr: netip.AddrPortFrom(podAddr(name, six), number), Here: strings.HasPrefix(name, "here"),
					Nodeless: name == "unnamed" || name == "outside"})
			}
			if s.guarded {
				p.Sources = guard
			}
			kinds := []Kind{ClusterIP, NodePort, LoadBalancer, ExternalIP}
			if s.clusterIP {
				kinds = kinds[:1]
			}
			for _, kind := range kinds {
				c.Add(&Service{Addr: netip.AddrPortFrom(s.address(kind, six), s.port(proto, kind)), Proto: proto, Kind: kind, Port: p})
			}
			out.ports = append(out.ports, p)
		}
	}
	return out
}

// object is the Service as the API has it.
func (s spec) object() *service.Service {
	o := &service.Service{Name: service.Name{Namespace: "lab", Name: s.name}, Type: service.LoadBalancer,
		ExternalLocal: s.local, Forwarding: s.forwarding, Algorithm: s.algorithm}
	for _, six := range []bool{false, true} {
		o.ClusterIPs = append(o.ClusterIPs, s.address(ClusterIP, six))
		if !s.clusterIP {
			o.LoadBalancerIPs = append(o.LoadBalancerIPs, s.address(LoadBalancer, six))
			o.ExternalIPs = append(o.ExternalIPs, s.address(ExternalIP, six))
		}
	}
	if s.guarded {
		o.SourceRanges = guard
	}
	if s.affinity {
		o.Affinity = time.Hour
	}
	for _, proto := range []uint8{TCP, UDP, SCTP} {
		p := service.Port{Name: fmt.Sprint("p", proto), Protocol: service.Protocol(proto), Port: s.port(proto, ClusterIP), NodePort: s.port(proto, NodePort)}
		if s.clusterIP {
			p.NodePort = 0
		}
		o.Ports = append(o.Ports, p)
	}
	if s.clusterIP {
		o.Type = service.ClusterIP
	}
	return o
}

// slices are its endpoints, a family each.
func (s *set) slices() []*service.EndpointSlice {
	var out []*service.EndpointSlice
	for i, family := range []service.Family{service.IPv4, service.IPv6} {
		slice := &service.EndpointSlice{Name: service.Name{Namespace: "lab", Name: s.spec.name + family.String()}, Service: s.spec.name, Family: family}
		for _, proto := range []uint8{TCP, UDP, SCTP} {
			p := service.SlicePort{Name: fmt.Sprint("p", proto), Protocol: service.Protocol(proto), Port: 8080}
			if proto == SCTP {
				p.Port = s.spec.sctpPort
			}
			slice.Ports = append(slice.Ports, p)
		}
		for _, e := range s.ports[3*i].Endpoints {
			node := "there"
			switch {
			case e.Here:
				node = "here"
			case e.Nodeless:
				node = ""
			}
			slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: e.Addr.Addr(), NodeName: node,
				Ready: e.State == Active, Serving: e.State != Dead, Terminating: e.State != Active})
		}
		out = append(out, slice)
	}
	return out
}

// apply makes the tables say what the model's world says.
func (l *lab) apply(changed ...*set) error {
	u := compile.Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.EndpointSlice{}}
	if changed == nil {
		changed = l.cluster.sets
		for _, s := range changed {
			o := s.spec.object()
			u.Services[o.Name] = o
		}
	}
	for _, s := range changed {
		for _, slice := range s.slices() {
			u.Slices[slice.Name] = slice
		}
	}
	return l.reconciler.Apply(l.compiler.Apply(u))
}

// demote makes an endpoint serve less, for all ports of both families alike.
func (s *set) demote(i int, to State) {
	for _, p := range s.ports {
		p.Endpoints[i].State = max(p.Endpoints[i].State, to)
		p.Version++
	}
}

// revive makes all endpoints ready, and tells whether one was not.
func (s *set) revive() bool {
	changed := false
	for _, p := range s.ports {
		for _, e := range p.Endpoints {
			changed = changed || e.State != Active
			e.State = Active
		}
		p.Version++
	}
	return changed
}
