// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"strings"
	"testing"

	"portolan.dev/portolan/pkg/service"
)

// explained is a line an endpoint: its address, the sets it is in, why.
func explained(c *Compiler, name string) string {
	var out []string
	for _, e := range c.Explain(named(name)) {
		in := ""
		if e.InCluster {
			in += "C"
		}
		if e.InLocal {
			in += "L"
		}
		out = append(out, fmt.Sprintf("%s [%s] %s", e.Addr, in, e.Reason))
	}
	return strings.Join(out, "\n")
}

func TestExplainSaysWhyAnEndpointIsInOrOut(t *testing.T) {
	for _, c := range []struct {
		name      string
		endpoints []service.Endpoint
		want      string
	}{
		{"ready", []service.Endpoint{ep("10.0.0.1", "here"), ep("10.0.0.2")},
			"10.0.0.1:8080 [CL] in: ready, on this node\n10.0.0.2:8080 [C] in: ready (on another node: out for policy Local)"},
		{"conditions", []service.Endpoint{ep("10.0.0.1"), ep("10.0.0.2", "unready"), ep("10.0.0.3", "unready", "terminating"), ep("10.0.0.4", "unready", "terminating", "unserving")},
			"10.0.0.1:8080 [C] in: ready (on another node: out for policy Local)\n10.0.0.2:8080 [] out: not ready\n" +
				"10.0.0.3:8080 [] out: terminating, 1 ready remain\n10.0.0.4:8080 [] out: terminating and not serving any more"},
		{"the last resort", []service.Endpoint{ep("10.0.0.1", "unready", "terminating")},
			"10.0.0.1:8080 [C] in: terminating but serving, the last resort"},
		{"the last resort of this node", []service.Endpoint{ep("10.0.0.1"), ep("10.0.0.2", "here", "unready", "terminating")},
			"10.0.0.1:8080 [C] in: ready (on another node: out for policy Local)\n" +
				"10.0.0.2:8080 [L] out for policy Cluster: terminating, 1 ready remain; in for policy Local as last resort"},
		{"zone hints", []service.Endpoint{ep("10.0.0.1", "zone=a"), ep("10.0.0.2", "zone=b,c")},
			"10.0.0.1:8080 [C] in: ready (on another node: out for policy Local)\n10.0.0.2:8080 [] out: hinted for zone b, c, hints prefer this node's zone a"},
		{"node hints", []service.Endpoint{ep("10.0.0.1", "node=here"), ep("10.0.0.2", "node=far")},
			"10.0.0.1:8080 [C] in: ready (on another node: out for policy Local)\n10.0.0.2:8080 [] out: hinted for node far, hints prefer this node"},
		{"hints that the Local set does not ask", []service.Endpoint{ep("10.0.0.1", "zone=a"), ep("10.0.0.2", "here", "zone=b")},
			"10.0.0.1:8080 [C] in: ready (on another node: out for policy Local)\n" +
				"10.0.0.2:8080 [L] out for policy Cluster: hinted for zone b, hints prefer this node's zone a; in for policy Local: ready, on this node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, "the explanation", explained(compiled(aService("ns/web"), aSlice("ns/1", "web", c.endpoints...)), "ns/web"), c.want)
		})
	}
}

func TestExplainNamesTheLimit(t *testing.T) {
	c := New(Config{Node: thisNode, MaxEndpoints: 1})
	c.Apply(batch(aService("ns/web"), aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.2"), ep("10.0.0.3", "unready", "unserving"))))
	expect(t, "the explanation", explained(c, "ns/web"), "10.0.0.1:8080 [C] in: ready (on another node: out for policy Local)\n"+
		"10.0.0.2:8080 [] out: beyond the limit of 1 endpoints\n10.0.0.3:8080 [] out: not ready")
}

func TestExplainPassesOverEndpointsOfAnotherFamily(t *testing.T) {
	wrong := aSlice("ns/1", "web", ep("fd00:10::1"))
	wrong.Family = service.IPv4
	c := compiled(aService("ns/web"), wrong)
	expect(t, "the explanation", explained(c, "ns/web"), "")
}

func TestExplainTellsOfTheSliceThatCounts(t *testing.T) {
	for _, order := range [][]string{{"ns/1", "ns/2"}, {"ns/2", "ns/1"}} {
		running, terminating := order[0], order[1]
		c := compiled(aService("ns/web"), aSlice(running, "web", ep("10.0.0.1")), aSlice(terminating, "web", ep("10.0.0.1", "unready", "terminating")))
		list := c.Explain(named("ns/web"))
		if len(list) != 1 || list[0].Slice != named(running) || list[0].Endpoint.Terminating {
			t.Errorf("running in %s, terminating in %s: %+v", running, terminating, list)
		}
	}
}

func TestExplainShowsWhatHasNoServicePort(t *testing.T) {
	headless := aService("ns/web", func(s *service.Service) { s.Headless, s.ClusterIPs = true, nil })
	c := compiled(headless, aSlice("ns/1", "web", ep("10.0.0.2", "unready"), ep("10.0.0.1")))
	expect(t, "the explanation", explained(c, "ns/web"), "10.0.0.1:8080 [] published by DNS: ready\n10.0.0.2:8080 [] not published by DNS: not ready")
	if list := c.Explain(named("ns/none")); list != nil {
		t.Errorf("a Service that is not there is explained: %v", list)
	}
	c.Apply(batch(aService("ns/alias", func(s *service.Service) { s.Type, s.ExternalName = service.ExternalName, "example.org" })))
	known := 0
	for range c.Services() {
		known++
	}
	if known != 2 {
		t.Errorf("%d Services are known, want the headless and the ExternalName one", known)
	}
}
