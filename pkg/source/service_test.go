// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/pkg/service"
)

func serviceFrom(t testing.TB, text string) *corev1.Service {
	s := parse[corev1.Service](t, text)
	s.Namespace, s.Name = "default", "web"
	return s
}

// Each bad part is named with its field and a mend, and the rest is served.
func TestABadPartOfAServiceIsReportedAndTheRestIsServed(t *testing.T) {
	for _, c := range []struct {
		name, text string
		reason     string
		says       string
		rest       func(*service.Service) bool
	}{
		{"unknown protocol", `spec: {clusterIP: 10.96.0.1, ports: [{port: 80, protocol: QUIC}, {name: b, port: 81}]}`,
			service.ReasonUnknownProtocol, `spec.ports[0].protocol is not served: unknown protocol "QUIC"`,
			func(s *service.Service) bool { return len(s.Ports) == 1 && s.Ports[0].Port == 81 }},
		{"port 0", `spec: {clusterIP: 10.96.0.1, ports: [{port: 0}, {name: b, port: 81}]}`,
			service.ReasonInvalidPort, "spec.ports[0].port 0", func(s *service.Service) bool { return len(s.Ports) == 1 }},
		{"port 70000", `spec: {clusterIP: 10.96.0.1, ports: [{port: 70000}]}`,
			service.ReasonInvalidPort, "spec.ports[0].port 70000", func(s *service.Service) bool { return len(s.Ports) == 0 }},
		{"negative port", `spec: {clusterIP: 10.96.0.1, ports: [{port: -80}]}`,
			service.ReasonInvalidPort, "-80", func(s *service.Service) bool { return len(s.Ports) == 0 }},
		{"no ports", `spec: {clusterIP: 10.96.0.1}`,
			service.ReasonInvalidPort, "spec.ports is empty", func(s *service.Service) bool { return len(s.ClusterIPs) == 1 }},
		{"node port 70000", `spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 70000}]}`,
			service.ReasonInvalidPort, "spec.ports[0].nodePort 70000", func(s *service.Service) bool { return len(s.Ports) == 1 && s.Ports[0].NodePort == 0 }},
		{"node port of a type without", `spec: {clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}`,
			service.ReasonInvalidField, "spec.ports[0].nodePort 30080", func(s *service.Service) bool { return len(s.Ports) == 1 && s.Ports[0].NodePort == 0 }},
		{"health check port 70000", `spec: {clusterIP: 10.96.0.1, healthCheckNodePort: 70000, ports: [{port: 80}]}`,
			service.ReasonInvalidPort, "spec.healthCheckNodePort 70000", func(s *service.Service) bool { return s.HealthCheckNodePort == 0 }},
		{"address that is none", `spec: {clusterIPs: [10.96.0.300, 10.96.0.1], ports: [{port: 80}]}`,
			service.ReasonInvalidAddress, `spec.clusterIPs[0] "10.96.0.300"`, func(s *service.Service) bool { return equal(s.ClusterIPs, addrs("10.96.0.1")) }},
		{"no address", `spec: {ports: [{port: 80}]}`,
			service.ReasonInvalidField, "spec.clusterIP is missing", func(s *service.Service) bool { return len(s.ClusterIPs) == 0 }},
		{"address everybody has", `spec: {clusterIP: 127.0.0.1, ports: [{port: 80}]}`,
			service.ReasonInvalidAddress, "spec.clusterIP 127.0.0.1", func(s *service.Service) bool { return len(s.ClusterIPs) == 0 }},
		{"clusterIP beside clusterIPs", `spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.1], ports: [{port: 80}]}`,
			service.ReasonInvalidField, "make them agree", func(s *service.Service) bool { return equal(s.ClusterIPs, addrs("10.96.0.1")) }},
		{"wrong family", `spec: {clusterIPs: ["10.96.0.1", "fd00::1"], ipFamilies: [IPv4], ports: [{port: 80}]}`,
			service.ReasonWrongFamily, "spec.clusterIPs[1] fd00::1", func(s *service.Service) bool { return equal(s.ClusterIPs, addrs("10.96.0.1")) }},
		{"external IP of another family", `spec: {clusterIP: 10.96.0.1, externalIPs: ["fd00::2", 203.0.113.2], ports: [{port: 80}]}`,
			service.ReasonWrongFamily, "spec.externalIPs[0] fd00::2", func(s *service.Service) bool { return equal(s.ExternalIPs, addrs("203.0.113.2")) }},
		{"external IP everybody has", `spec: {clusterIP: 10.96.0.1, externalIPs: [127.0.0.1, 203.0.113.2], ports: [{port: 80}]}`,
			service.ReasonInvalidAddress, "spec.externalIPs[0] 127.0.0.1", func(s *service.Service) bool { return equal(s.ExternalIPs, addrs("203.0.113.2")) }},
		{"load balancer address of another family", `{spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: "fd00::2"}]}}}`,
			service.ReasonWrongFamily, "status.loadBalancer.ingress[0].ip fd00::2", func(s *service.Service) bool { return len(s.LoadBalancerIPs) == 0 }},
		{"load balancer address everybody has", `{spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: 0.0.0.0}]}}}`,
			service.ReasonInvalidAddress, "status.loadBalancer.ingress[0].ip 0.0.0.0", func(s *service.Service) bool { return len(s.LoadBalancerIPs) == 0 }},
		{"unknown ipMode is left to the load balancer", `{spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: vip}]}}}`,
			service.ReasonInvalidField, "ipMode", func(s *service.Service) bool { return len(s.LoadBalancerIPs) == 0 && len(s.ProxyIPs) == 1 }},
		{"leading zeros are read as decimal", `spec: {clusterIP: 10.096.0.010, ports: [{port: 80}]}`,
			service.ReasonLeadingZeros, "10.96.0.10", func(s *service.Service) bool { return equal(s.ClusterIPs, addrs("10.96.0.10")) }},
		{"affinity timeout 0", `spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}`,
			service.ReasonInvalidField, "timeoutSeconds 0", func(s *service.Service) bool { return s.Affinity == 3*time.Hour }},
		{"affinity timeout above a day", `spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}`,
			service.ReasonInvalidField, "timeoutSeconds 86401", func(s *service.Service) bool { return s.Affinity == 3*time.Hour }},
		{"unknown affinity", `spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: Cookie}`,
			service.ReasonInvalidField, `spec.sessionAffinity "Cookie"`, func(s *service.Service) bool { return s.Affinity == 0 }},
		{"unknown type", `spec: {type: Clusterip, clusterIP: 10.96.0.1, ports: [{port: 80}]}`,
			service.ReasonInvalidField, `spec.type "Clusterip"`, func(s *service.Service) bool { return s.Type == service.ClusterIP && len(s.ClusterIPs) == 1 }},
		{"unknown external policy", `spec: {type: NodePort, clusterIP: 10.96.0.1, externalTrafficPolicy: local, ports: [{port: 80}]}`,
			service.ReasonInvalidField, `spec.externalTrafficPolicy "local"`, func(s *service.Service) bool { return !s.ExternalLocal }},
		{"unknown internal policy", `spec: {clusterIP: 10.96.0.1, internalTrafficPolicy: Node, ports: [{port: 80}]}`,
			service.ReasonInvalidField, `spec.internalTrafficPolicy "Node"`, func(s *service.Service) bool { return !s.InternalLocal }},
		{"headless with a node port", `spec: {type: NodePort, clusterIP: None, ports: [{port: 80, nodePort: 30080}]}`,
			service.ReasonInvalidField, "spec.type NodePort of a headless Service", func(s *service.Service) bool { return s.Headless }},
		{"a source range that is none", `spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}], loadBalancerSourceRanges: ["nonsense", " 192.0.2.0/24 "]}`,
			service.ReasonInvalidRange, `spec.loadBalancerSourceRanges[0] "nonsense"`, func(s *service.Service) bool { return equal(s.SourceRanges, prefixes("192.0.2.0/24")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, problems := (&Converter{}).Service(serviceFrom(t, c.text))
			if !c.rest(s) {
				t.Errorf("the rest is %+v", s)
			}
			wantProblem(t, problems, "Service default/web", c.reason, c.says)
		})
	}
}

func TestPortsThatClaimANameOrNumberTwiceAreLeftOut(t *testing.T) {
	for _, c := range []struct {
		ports, says string
		served      int
	}{
		{`[{name: a, port: 80}, {name: b, port: 80}]`, "spec.ports[1] has the name or the number of spec.ports[0]", 1},
		{`[{name: a, port: 80}, {name: a, port: 81}]`, "spec.ports[1] has the name or the number of spec.ports[0]", 1},
		{`[{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]`, "", 2},
	} {
		s, problems := (&Converter{}).Service(serviceFrom(t, `spec: {clusterIP: 10.96.0.1, ports: `+c.ports+`}`))
		if len(s.Ports) != c.served {
			t.Errorf("%s: served %v", c.ports, s.Ports)
		}
		if c.says == "" {
			if len(problems) > 0 {
				t.Errorf("%s: %v", c.ports, problems)
			}
			continue
		}
		wantProblem(t, problems, "Service default/web", service.ReasonInvalidPort, c.says)
	}
}

func TestATwinIsNamedByItsPlaceInTheObject(t *testing.T) {
	_, problems := (&Converter{}).Service(serviceFrom(t, `spec: {clusterIP: 10.96.0.1, ports: [{name: z, port: 0}, {name: a, port: 80}, {name: b, port: 80}]}`))
	if len(problems) != 2 {
		t.Fatalf("problems %v", problems)
	}
	wantProblem(t, problems[1:], "Service default/web", service.ReasonInvalidPort, "spec.ports[2] has the name or the number of spec.ports[1]")
}

// A guard that cannot be read is no guard; a family that it may have been
// meant for must not stand open because of that.
func TestAGuardThatCannotBeReadDoesNotStandOpen(t *testing.T) {
	for ranges, want := range map[string][]string{
		`[x]`:                         nil,
		`[x, 192.0.2.0/24]`:           {"203.0.113.1"},
		`[x, "fd00::/8"]`:             {"2001:db8::1"},
		`["fd00::/8"]`:                {"203.0.113.1", "2001:db8::1"},
		`[x, 0.0.0.0/0, "fd00::/8"]`:  {"203.0.113.1", "2001:db8::1"},
		`["192.0.2.0/24", "fd00::/"]`: {"203.0.113.1"},
	} {
		s, _ := (&Converter{}).Service(serviceFrom(t, `
spec: {type: LoadBalancer, clusterIPs: [10.96.0.1, "fd00::1"], ports: [{port: 80}], loadBalancerSourceRanges: `+ranges+`}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: "2001:db8::1"}]}}`))
		if !equal(s.LoadBalancerIPs, addrs(want...)) {
			t.Errorf("ranges %s: load balancer addresses %v are served, want %v", ranges, s.LoadBalancerIPs, want)
		}
	}
}

func TestWhoServesAServiceIsDecidedByItsLabel(t *testing.T) {
	for _, c := range []struct {
		configured string
		labels     map[string]string
		by         string
	}{
		{"", nil, ""},
		{"", map[string]string{labelProxyName: "x"}, "x"},
		{"", map[string]string{labelProxyName: ""}, "unnamed"},
		{"", map[string]string{labelHeadless: ""}, ""},
		{"x", map[string]string{labelProxyName: "x"}, ""},
		{"x", map[string]string{labelProxyName: "y"}, "y"},
		{"x", nil, "default"},
	} {
		obj := serviceFrom(t, `spec: {clusterIP: 10.96.0.1, ports: [{port: 0}]}`)
		obj.Labels = c.labels
		s, problems := (&Converter{ProxyName: c.configured}).Service(obj)
		if s.ProxyName != c.by {
			t.Errorf("--service-proxy-name %q, labels %v: served by %q, want %q", c.configured, c.labels, s.ProxyName, c.by)
		}
		if (len(problems) > 0) != (c.by == "") {
			t.Errorf("served by %q, and its problems are %v", c.by, problems)
		}
	}
}

func TestLoadBalancerAddressesFollowTheirMode(t *testing.T) {
	s, problems := (&Converter{}).Service(serviceFrom(t, `
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: 203.0.113.3, ipMode: Proxy}, {hostname: lb.example.org}]}}`))
	if len(problems) > 0 {
		t.Error(problems)
	}
	if !equal(s.LoadBalancerIPs, addrs("203.0.113.1", "203.0.113.2")) || !equal(s.ProxyIPs, addrs("203.0.113.3")) || !equal(s.LoadBalancerHostnames, []string{"lb.example.org"}) {
		t.Errorf("%+v", s)
	}
}

func TestAnAddressThatIsOnlyWishedForIsNotServed(t *testing.T) {
	s, problems := (&Converter{}).Service(serviceFrom(t, `
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, loadBalancerIP: 203.0.113.1, loadBalancerClass: x, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}`))
	if len(s.LoadBalancerIPs) > 0 || len(problems) > 0 || s.Ports[0].NodePort != 0 {
		t.Errorf("%+v, problems %v", s, problems)
	}
}

func TestServicesWithoutATableEntryAreKept(t *testing.T) {
	for text, want := range map[string]func(*service.Service) bool{
		`spec: {clusterIP: None}`: func(s *service.Service) bool { return s.Headless && s.Type == service.ClusterIP },
		`spec: {type: ExternalName, externalName: db.example.org, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}`: func(s *service.Service) bool {
			return s.Type == service.ExternalName && s.ExternalName == "db.example.org" && s.Ports[0].NodePort == 0
		},
	} {
		if s, problems := (&Converter{}).Service(serviceFrom(t, text)); !want(s) || len(problems) > 0 {
			t.Errorf("%s is %+v, problems %v", text, s, problems)
		}
	}
}

func TestAWholeServiceIsConverted(t *testing.T) {
	s, problems := (&Converter{}).Service(serviceFrom(t, `
metadata: {creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  type: NodePort
  clusterIPs: ["fd00::1", 10.96.0.1]
  ipFamilies: [IPv6, IPv4]
  externalIPs: [203.0.113.9]
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 30900
  sessionAffinity: ClientIP
  selector: {tier: front, app: web}
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353, nodePort: 30053}
  - {name: sctp, port: 90, protocol: SCTP, nodePort: 30090}`))
	if len(problems) > 0 {
		t.Error(problems)
	}
	if s.Created.Year() != 2026 || s.Type != service.NodePort || !equal(s.ClusterIPs, addrs("fd00::1", "10.96.0.1")) || !equal(s.ExternalIPs, addrs("203.0.113.9")) ||
		!s.InternalLocal || !s.ExternalLocal || s.HealthCheckNodePort != 30900 || s.Affinity != 3*time.Hour || s.Selector != "app=web,tier=front" {
		t.Errorf("%+v", s)
	}
	if !equal(s.Ports, []service.Port{
		{Name: "http", Protocol: service.TCP, Port: 80, NodePort: 30080, TargetPort: "web"},
		{Name: "dns", Protocol: service.UDP, Port: 53, NodePort: 30053, TargetPort: "5353"},
		{Name: "sctp", Protocol: service.SCTP, Port: 90, NodePort: 30090, TargetPort: "0"},
	}) {
		t.Errorf("ports %+v", s.Ports)
	}
}

func TestExternalIPsMayBeRestricted(t *testing.T) {
	t.Parallel()
	obj := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.1", ExternalIPs: []string{"203.0.113.10", "198.51.100.1"}, Ports: []corev1.ServicePort{{Port: 80}}}}
	for _, c := range []struct {
		allowed  []netip.Prefix
		served   int
		problems int
	}{
		{nil, 2, 0},
		{[]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, 1, 1},
		{[]netip.Prefix{}, 0, 2},
	} {
		s, problems := (&Converter{ExternalIPs: c.allowed}).Service(obj)
		if len(s.ExternalIPs) != c.served || len(problems) != c.problems {
			t.Errorf("allowed %v: %v served, problems %v", c.allowed, s.ExternalIPs, problems)
		}
		for _, p := range problems {
			if p.Reason != service.ReasonNotAllowed || !strings.Contains(p.Message, "--external-ip-cidrs") {
				t.Errorf("problem %+v", p)
			}
		}
	}
}
