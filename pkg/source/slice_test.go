// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"portolan.dev/portolan/pkg/service"
)

func sliceFrom(t testing.TB, text string) *discoveryv1.EndpointSlice {
	s := parse[discoveryv1.EndpointSlice](t, text)
	s.Namespace, s.Name = "default", "web-1"
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Labels[discoveryv1.LabelServiceName] = "web"
	return s
}

func TestConditionsThatAreAbsentCountAsTheAPISays(t *testing.T) {
	s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2], conditions: {ready: false, terminating: true}}
- {addresses: [10.0.0.3], conditions: {ready: true, serving: false, terminating: true}}`))
	if len(problems) > 0 || len(s.Endpoints) != 3 {
		t.Fatalf("%+v, problems %v", s, problems)
	}
	for i, want := range [][3]bool{{true, true, false}, {false, true, true}, {true, false, true}} {
		if e := s.Endpoints[i]; [3]bool{e.Ready, e.Serving, e.Terminating} != want {
			t.Errorf("ready, serving, terminating of %s are %v %v %v, want %v", e.Addr, e.Ready, e.Serving, e.Terminating, want)
		}
	}
}

func TestAWholeEndpointIsConverted(t *testing.T) {
	s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `
addressType: IPv6
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- addresses: ["fd00::1", "fd00::2"]
  nodeName: n1
  zone: a
  targetRef: {kind: Pod, name: web-5}
  hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: n1}]}
- addresses: ["fd00::3"]`))
	if len(problems) > 0 || s.ServiceName() != (service.Name{Namespace: "default", Name: "web"}) || s.Family != service.IPv6 || len(s.Endpoints) != 2 {
		t.Fatalf("%+v, problems %v", s, problems)
	}
	if !equal(s.Ports, []service.SlicePort{{Name: "http", Protocol: service.TCP, Port: 8080}, {Name: "dns", Protocol: service.UDP, Port: 53}}) {
		t.Errorf("ports %v", s.Ports)
	}
	e := s.Endpoints[0]
	if e.Addr.String() != "fd00::1" || e.NodeName != "n1" || e.Zone != "a" || e.Target != "web-5" || !equal(e.ZoneHints, []string{"a", "b"}) || !equal(e.NodeHints, []string{"n1"}) {
		t.Errorf("endpoint %+v", e)
	}
	if e := s.Endpoints[1]; e.NodeName != "" || e.Zone != "" || e.ZoneHints != nil || e.NodeHints != nil {
		t.Errorf("an endpoint without a node is %+v", e)
	}
}

func TestSlicePortsWithoutNameOrNumberArePassedOver(t *testing.T) {
	s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `
addressType: IPv4
ports: [{name: "", port: 80}, {name: x}, {port: 81}]`))
	if len(problems) > 0 || !equal(s.Ports, []service.SlicePort{{Protocol: service.TCP, Port: 80}}) {
		t.Errorf("ports %v, problems %v", s.Ports, problems)
	}
}

func TestABadPartOfASliceIsReportedAndTheRestIsUsed(t *testing.T) {
	for _, c := range []struct{ name, bad, reason, says string }{
		{"loopback", `{addresses: [127.0.0.1]}`, service.ReasonInvalidAddress, "endpoints[0].addresses 127.0.0.1"},
		{"link-local", `{addresses: [169.254.1.1]}`, service.ReasonInvalidAddress, "169.254.1.1"},
		{"unspecified", `{addresses: [0.0.0.0]}`, service.ReasonInvalidAddress, "0.0.0.0"},
		{"multicast", `{addresses: [224.0.0.1]}`, service.ReasonInvalidAddress, "224.0.0.1"},
		{"broadcast", `{addresses: [255.255.255.255]}`, service.ReasonInvalidAddress, "255.255.255.255"},
		{"another family", `{addresses: ["fd00::1"]}`, service.ReasonWrongFamily, "fd00::1 is not IPv4"},
		{"no address", `{addresses: []}`, service.ReasonInvalidAddress, "endpoints[0].addresses is empty"},
		{"address that is none", `{addresses: [web]}`, service.ReasonInvalidAddress, `"web"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `{addressType: IPv4, endpoints: [`+c.bad+`, {addresses: [10.0.0.1]}]}`))
			if len(s.Endpoints) != 1 || s.Endpoints[0].Addr != addrs("10.0.0.1")[0] {
				t.Errorf("endpoints %v", s.Endpoints)
			}
			wantProblem(t, problems, "EndpointSlice default/web-1", c.reason, c.says)
		})
	}
	for _, c := range []struct{ name, bad, reason, says string }{
		{"port 0", `{name: a, port: 0}`, service.ReasonInvalidPort, "ports[0].port 0"},
		{"port 70000", `{name: a, port: 70000}`, service.ReasonInvalidPort, "ports[0].port 70000"},
		{"unknown protocol", `{name: a, port: 1, protocol: QUIC}`, service.ReasonUnknownProtocol, "ports[0].protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `{addressType: IPv4, ports: [`+c.bad+`, {name: b, port: 80}]}`))
			if len(s.Ports) != 1 || s.Ports[0].Name != "b" {
				t.Errorf("ports %v", s.Ports)
			}
			wantProblem(t, problems, "EndpointSlice default/web-1", c.reason, c.says)
		})
	}
}

func TestASliceOfAnUnknownAddressTypeIsReported(t *testing.T) {
	s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `addressType: ipv4`))
	if s != nil {
		t.Errorf("%+v", s)
	}
	wantProblem(t, problems, "EndpointSlice default/web-1", service.ReasonInvalidField, `addressType "ipv4"`)
}

func TestLabelsDecideWhatASliceIsFor(t *testing.T) {
	if s, problems := (&Converter{}).EndpointSlice(sliceFrom(t, `addressType: FQDN`)); s != nil || problems != nil {
		t.Errorf("a slice of names is %v, problems %v", s, problems)
	}
	obj := sliceFrom(t, `addressType: IPv4`)
	obj.Labels[labelProxyName] = "x"
	if s, _ := (&Converter{}).EndpointSlice(obj); s == nil || s.Headless {
		t.Errorf("a slice labelled %s is %+v: the label means nothing on slices", labelProxyName, s)
	}
	obj.Labels[labelHeadless] = ""
	if s, _ := (&Converter{}).EndpointSlice(obj); s == nil || !s.Headless {
		t.Errorf("a headless slice is %+v: it is kept to be shown", s)
	}
	delete(obj.Labels, discoveryv1.LabelServiceName)
	if s, problems := (&Converter{}).EndpointSlice(obj); s != nil || problems != nil {
		t.Errorf("a slice of no Service is %+v, problems %v", s, problems)
	}
}

func TestASliceTellsWhenItsChangeHappened(t *testing.T) {
	for text, want := range map[string]string{
		"2026-05-01T12:00:00.5Z": "2026-05-01 12:00:00.5 +0000 UTC",
		"yesterday":              "0001-01-01 00:00:00 +0000 UTC",
	} {
		obj := sliceFrom(t, "addressType: IPv4")
		obj.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": text}
		s, problems := (&Converter{}).EndpointSlice(obj)
		if len(problems) > 0 || s.ChangedAt.String() != want {
			t.Errorf("%q is read as %v, want %s; problems %v", text, s.ChangedAt, want, problems)
		}
	}
}
