// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/pkg/service"
)

// FuzzConversion: whatever an object says, what comes of it can be compiled
// without a second look, and what is left out has a problem with a name.
func FuzzConversion(f *testing.F) {
	f.Add("10.96.0.1", "fd00::1", "192.0.2.0/24", "TCP", "NodePort", "IPv4", int32(80), int32(30080), int32(10800))
	f.Add("010.0.0.1", "::ffff:1.2.3.4", "::ffff:1.2.3.4/100", "", "LoadBalancer", "IPv6", int32(-1), int32(70000), int32(0))
	f.Add("None", "fe80::1%a", "0/0", "QUIC", "x", "FQDN", int32(0), int32(0), int32(86401))
	f.Fuzz(func(t *testing.T, first, second, cidr, protocol, kind, family string, port, nodePort, seconds int32) {
		svc := corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceType(kind), ClusterIP: first, ClusterIPs: []string{first, second},
				IPFamilies: []corev1.IPFamily{corev1.IPFamily(family)}, ExternalIPs: []string{second, first, cidr},
				LoadBalancerSourceRanges: []string{cidr, first}, SessionAffinity: corev1.ServiceAffinityClientIP,
				SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}},
				HealthCheckNodePort:   nodePort,
				Ports:                 []corev1.ServicePort{{Protocol: corev1.Protocol(protocol), Port: port, NodePort: nodePort}, {Name: cidr, Port: nodePort}},
			},
		}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: second}, {IP: first, IPMode: (*corev1.LoadBalancerIPMode)(&kind)}, {Hostname: cidr}}
		s, problems := (&Converter{}).Service(&svc)
		checkService(t, s)
		checkProblems(t, problems, "Service default/web")

		slice := discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressType(family),
			Ports:       []discoveryv1.EndpointPort{{Name: &cidr, Port: &port, Protocol: (*corev1.Protocol)(&protocol)}, {Name: &cidr, Port: &nodePort}, {}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{first, second}}, {Addresses: []string{second}, NodeName: &kind}, {}},
		}
		sl, problems := (&Converter{}).EndpointSlice(&slice)
		checkProblems(t, problems, "EndpointSlice default/web-1")
		if sl == nil {
			return
		}
		for _, e := range sl.Endpoints {
			if service.FamilyOf(e.Addr) != sl.Family || special(e.Addr) {
				t.Errorf("endpoint %s in a slice of %s", e.Addr, sl.Family)
			}
		}
		for _, p := range sl.Ports {
			if p.Port == 0 || p.Protocol == 0 {
				t.Errorf("slice port %+v", p)
			}
		}
	})
}

func checkService(t *testing.T, s *service.Service) {
	for _, list := range [][]netip.Addr{s.ClusterIPs, s.ExternalIPs, s.LoadBalancerIPs, s.ProxyIPs} {
		for _, a := range list {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Errorf("address %v", a)
			}
		}
	}
	for _, list := range [][]netip.Addr{s.ClusterIPs, s.ExternalIPs, s.LoadBalancerIPs} {
		for _, a := range list {
			if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() {
				t.Errorf("address %v is served", a)
			}
		}
	}
	for _, p := range s.SourceRanges {
		if p != p.Masked() || p.Addr().Is4In6() {
			t.Errorf("range %v", p)
		}
	}
	for _, p := range s.Ports {
		if p.Port == 0 || p.Protocol == 0 {
			t.Errorf("port %+v", p)
		}
	}
	if s.Affinity <= 0 {
		t.Errorf("affinity %v", s.Affinity)
	}
}

func checkProblems(t *testing.T, problems []service.Problem, object string) {
	for _, p := range problems {
		if p.Object != object || p.Reason == "" || p.Message == "" {
			t.Errorf("problem %+v", p)
		}
	}
}
