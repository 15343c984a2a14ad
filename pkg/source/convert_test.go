// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"portolan.dev/portolan/pkg/service"
)

func serviceFrom(t *testing.T, text string) *corev1.Service {
	t.Helper()
	var s corev1.Service
	if err := yaml.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	s.Namespace, s.Name = "default", "web"
	return &s
}

func sliceFrom(t *testing.T, text string) *discoveryv1.EndpointSlice {
	t.Helper()
	var s discoveryv1.EndpointSlice
	if err := yaml.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	s.Namespace, s.Name = "default", "web-1"
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[discoveryv1.LabelServiceName] = "web"
	return &s
}

// Each bad part is named with its field and a mend, and the rest is served.
func TestABadPartOfAServiceIsReportedAndTheRestIsServed(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		reason     string
		says       string
		rest       func(*service.Service) bool
	}{
		{"unknown protocol", `spec: {clusterIP: 10.96.0.1, ports: [{port: 80, protocol: QUIC}, {name: b, port: 81}]}`,
			service.ReasonUnknownProtocol, "spec.ports[0]", func(s *service.Service) bool { return len(s.Ports) == 1 && s.Ports[0].Port == 81 }},
		{"port 0", `spec: {clusterIP: 10.96.0.1, ports: [{port: 0}, {name: b, port: 81}]}`,
			service.ReasonInvalidPort, "spec.ports[0].port 0", func(s *service.Service) bool { return len(s.Ports) == 1 }},
		{"port 70000", `spec: {clusterIP: 10.96.0.1, ports: [{port: 70000}]}`,
			service.ReasonInvalidPort, "70000", func(s *service.Service) bool { return len(s.Ports) == 0 }},
		{"node port 70000", `spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 70000}]}`,
			service.ReasonInvalidPort, "nodePort 70000", func(s *service.Service) bool { return len(s.Ports) == 1 && s.Ports[0].NodePort == 0 }},
		{"address that is none", `spec: {clusterIPs: [10.96.0.300, 10.96.0.1], ports: [{port: 80}]}`,
			service.ReasonInvalidAddress, "10.96.0.300", func(s *service.Service) bool { return len(s.ClusterIPs) == 1 }},
		{"wrong family", `spec: {clusterIPs: ["10.96.0.1", "fd00::1"], ipFamilies: [IPv4], ports: [{port: 80}]}`,
			service.ReasonWrongFamily, "fd00::1", func(s *service.Service) bool { return len(s.ClusterIPs) == 1 }},
		{"leading zeros are read as decimal", `spec: {clusterIP: 10.096.0.010, ports: [{port: 80}]}`,
			service.ReasonLeadingZeros, "10.96.0.10", func(s *service.Service) bool { return s.ClusterIPs[0] == netip.MustParseAddr("10.96.0.10") }},
		{"two ports of one number", `spec: {clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 80}]}`,
			service.ReasonInvalidPort, "spec.ports[1]", func(s *service.Service) bool { return len(s.Ports) == 1 && s.Ports[0].Name == "a" }},
		{"affinity timeout out of range", `spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}`,
			service.ReasonInvalidField, "timeoutSeconds 0", func(s *service.Service) bool { return s.Affinity == 3*time.Hour }},
		{"a source range that is none", `spec: {type: LoadBalancer, clusterIP: 10.96.0.1, loadBalancerSourceRanges: ["nonsense", " 192.0.2.0/24 "]}`,
			service.ReasonInvalidRange, "nonsense", func(s *service.Service) bool { return len(s.SourceRanges) == 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, problems := (&Converter{}).Service(serviceFrom(t, c.spec))
			if !c.rest(s) {
				t.Errorf("the rest is %+v", s)
			}
			if len(problems) != 1 || problems[0].Reason != c.reason || !strings.Contains(problems[0].Message, c.says) || problems[0].Object != "Service default/web" {
				t.Errorf("problems %+v, want one of reason %s naming %s", problems, c.reason, c.says)
			}
		})
	}
}

func TestAGuardOfWhichNothingCanBeReadDoesNotStandOpen(t *testing.T) {
	s, _ := (&Converter{}).Service(serviceFrom(t, `
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, loadBalancerSourceRanges: [x]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}`))
	if len(s.LoadBalancerIPs) != 0 {
		t.Errorf("load balancer addresses %v are served to everybody", s.LoadBalancerIPs)
	}
}

func TestWhoServesAServiceIsDecidedByItsLabel(t *testing.T) {
	for _, c := range []struct {
		configured string
		labels     map[string]string
		ours       bool
	}{
		{"", nil, true},
		{"", map[string]string{labelProxyName: "x"}, false},
		{"", map[string]string{labelProxyName: ""}, false},
		{"", map[string]string{labelHeadless: ""}, true},
		{"x", map[string]string{labelProxyName: "x"}, true},
		{"x", map[string]string{labelProxyName: "y"}, false},
		{"x", nil, false},
	} {
		obj := serviceFrom(t, `spec: {clusterIP: 10.96.0.1}`)
		obj.Labels = c.labels
		s, _ := (&Converter{ProxyName: c.configured}).Service(obj)
		if (s.ProxyName == "") != c.ours {
			t.Errorf("--service-proxy-name %q, labels %v: served by %q", c.configured, c.labels, s.ProxyName)
		}
	}
}

func TestLoadBalancerAddressesFollowTheirMode(t *testing.T) {
	s, problems := (&Converter{}).Service(serviceFrom(t, `
spec: {type: LoadBalancer, clusterIP: 10.96.0.1}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: 203.0.113.3, ipMode: Proxy}, {hostname: lb.example.org}]}}`))
	if len(problems) > 0 || len(s.LoadBalancerIPs) != 2 || len(s.ProxyIPs) != 1 || !slices.Equal(s.LoadBalancerHostnames, []string{"lb.example.org"}) {
		t.Errorf("%+v, problems %v", s, problems)
	}
}

func TestConditionsThatAreAbsentCountAsTheAPISays(t *testing.T) {
	s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `
addressType: IPv4
ports: [{name: "", port: 80}, {name: x}, {port: 81}]
endpoints: [{addresses: [10.0.0.1, 10.0.0.2]}, {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}]`))
	if len(problems) > 0 || len(s.Endpoints) != 2 {
		t.Fatalf("%+v, problems %v", s, problems)
	}
	if e := s.Endpoints[0]; !e.Ready || !e.Serving || e.Terminating || e.Addr != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("first endpoint %+v", e)
	}
	if e := s.Endpoints[1]; e.Ready || !e.Serving || !e.Terminating {
		t.Errorf("second endpoint %+v", e)
	}
	if len(s.Ports) != 1 {
		t.Errorf("ports %v: one without a number or a name is passed over", s.Ports)
	}
}

func TestEndpointsThatCannotBeAreLeftOut(t *testing.T) {
	s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `
addressType: IPv4
endpoints: [{addresses: [127.0.0.1]}, {addresses: [fd00::1]}, {addresses: [x]}, {addresses: [169.254.1.1]}, {addresses: []}, {addresses: [10.0.0.1]}]`))
	if len(s.Endpoints) != 1 || len(problems) != 5 {
		t.Errorf("endpoints %v, problems %v", s.Endpoints, problems)
	}
}

func TestSlicesOfNamesBelongToNoProxy(t *testing.T) {
	if s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `addressType: FQDN`)); s != nil || problems != nil {
		t.Errorf("%v %v", s, problems)
	}
	obj := sliceFrom(t, `addressType: IPv4`)
	obj.Labels[labelHeadless] = ""
	if s, _ := (&Converter{}).EndpointSlice(obj); s == nil || !s.Headless {
		t.Errorf("a headless slice is %+v: it is kept to be shown", s)
	}
	delete(obj.Labels, discoveryv1.LabelServiceName)
	if s, _ := (&Converter{}).EndpointSlice(obj); s != nil {
		t.Errorf("a slice of no Service is %+v", s)
	}
}
