// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

func TestSelfTestsTryWhatLeavesNoTrace(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	dns := service.Service{Name: service.Name{Namespace: "d", Name: "dns"}, ClusterIPs: []netip.Addr{addr("10.96.0.10")},
		Ports: []service.Port{{Name: "udp", Protocol: service.UDP, Port: 53}, {Name: "tcp", Protocol: service.TCP, Port: 53}}}
	ready := service.Endpoint{Addr: addr("10.244.1.5"), Ready: true, Serving: true, NodeName: "there"}
	udp := netip.MustParseAddrPort("10.96.0.10:53")
	for name, c := range map[string]struct {
		edit func(*service.Service)
		want loader.SelfTest
	}{
		"a UDP port":                 {func(*service.Service) {}, loader.SelfTest{Datagram: []netip.AddrPort{udp}}},
		"TCP only":                   {func(s *service.Service) { s.Ports = s.Ports[1:] }, loader.SelfTest{}},
		"affinity":                   {func(s *service.Service) { s.Affinity = time.Minute }, loader.SelfTest{}},
		"policy Local and none here": {func(s *service.Service) { s.InternalLocal = true }, loader.SelfTest{}},
		"a load balancer address": {func(s *service.Service) {
			s.Type, s.LoadBalancerIPs = service.LoadBalancer, []netip.Addr{addr("203.0.113.1")}
		}, loader.SelfTest{Published: []netip.Addr{addr("203.0.113.1")}, Datagram: []netip.AddrPort{udp}}},
		"an external address of the node": {func(s *service.Service) { s.ExternalIPs = []netip.Addr{addr("192.0.2.1")} },
			loader.SelfTest{Datagram: []netip.AddrPort{udp}}},
	} {
		svc := dns
		c.edit(&svc)
		compiler := compile.New(compile.Config{Node: service.Node{Name: "here"}})
		slice := service.Name{Namespace: "d", Name: "dns-1"}
		compiler.Apply(compile.Update{
			Services: map[service.Name]*service.Service{svc.Name: &svc},
			Slices: map[service.Name]*service.EndpointSlice{slice: {Name: slice, Service: "dns", Family: service.IPv4, Endpoints: []service.Endpoint{ready},
				Ports: []service.SlicePort{{Name: "udp", Protocol: service.UDP, Port: 5353}, {Name: "tcp", Protocol: service.TCP, Port: 5353}}}},
		})
		got := selfTest(compiler, []netip.Addr{addr("192.0.2.1")})
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestAFaultIsWhatWasSeenTwiceInARow(t *testing.T) {
	t.Parallel()
	a, b := loader.Fault{Family: 4, Reason: "a"}, loader.Fault{Reason: "b"}
	for _, c := range []struct{ before, now, want []loader.Fault }{
		{nil, []loader.Fault{a}, nil},
		{[]loader.Fault{a}, []loader.Fault{a, b}, []loader.Fault{a}},
		{[]loader.Fault{a, b}, []loader.Fault{b}, []loader.Fault{b}},
		{[]loader.Fault{a}, nil, nil},
		{[]loader.Fault{{Family: 6, Reason: "a"}}, []loader.Fault{a}, nil},
	} {
		if diff := cmp.Diff(c.want, lasting(c.before, c.now)); diff != "" {
			t.Errorf("of %v after %v (-want +got):\n%s", c.now, c.before, diff)
		}
	}
}
