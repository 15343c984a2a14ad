// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	"portolan.dev/portolan/pkg/service"
)

func TestEndpointsAreChosenByConditions(t *testing.T) {
	for _, c := range []struct {
		name      string
		endpoints []service.Endpoint
		want      string
	}{
		{"ready ones are used", []service.Endpoint{ep("10.0.0.1", "here"), ep("10.0.0.2")}, "cluster[10.0.0.1 10.0.0.2] local[10.0.0.1]"},
		{"no endpoint at all is refused", nil, "cluster[] local[] refuse"},
		{"none that could serve is refused",
			[]service.Endpoint{ep("10.0.0.1", "unready", "unserving"), ep("10.0.0.2", "unready", "terminating", "unserving")}, "cluster[] local[] refuse"},
		{"none on this node is dropped, not refused", []service.Endpoint{ep("10.0.0.1")}, "cluster[10.0.0.1] local[]"},
		{"unready and running is never used, even if it serves",
			[]service.Endpoint{ep("10.0.0.1", "unready")}, "cluster[] local[] refuse"},
		{"terminating ones are not used beside ready ones",
			[]service.Endpoint{ep("10.0.0.1"), ep("10.0.0.2", "unready", "terminating")}, "cluster[10.0.0.1] local[]"},
		{"without a ready one all that terminate and serve are used",
			[]service.Endpoint{ep("10.0.0.1", "here", "unready", "terminating"), ep("10.0.0.2", "unready", "terminating")},
			"cluster[10.0.0.1 10.0.0.2] local[10.0.0.1]"},
		{"a terminating one that does not serve is never used",
			[]service.Endpoint{ep("10.0.0.1", "unready", "terminating", "unserving")}, "cluster[] local[] refuse"},
		{"the local set falls back although ready ones are elsewhere",
			[]service.Endpoint{ep("10.0.0.1", "here", "unready", "terminating"), ep("10.0.0.2")}, "cluster[10.0.0.2] local[10.0.0.1]"},
		{"ready is believed without serving", []service.Endpoint{ep("10.0.0.1", "unserving")}, "cluster[10.0.0.1] local[]"},
		{"ready is believed while terminating",
			[]service.Endpoint{ep("10.0.0.1", "terminating"), ep("10.0.0.2", "terminating", "unserving")}, "cluster[10.0.0.1 10.0.0.2] local[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, "the choice", sets(http(t, compiled(aService("ns/web"), aSlice("ns/web-1", "web", c.endpoints...)))), c.want)
		})
	}
}

func TestHintsAreObeyed(t *testing.T) {
	for _, c := range []struct {
		name      string
		node      service.Node
		endpoints []service.Endpoint
		want      string
	}{
		{"those for this zone", thisNode, []service.Endpoint{ep("10.0.0.1", "zone=a"), ep("10.0.0.2", "zone=b")}, "cluster[10.0.0.1] local[]"},
		{"each zone of several counts", thisNode, []service.Endpoint{ep("10.0.0.1", "zone=b,a"), ep("10.0.0.2", "zone=b")}, "cluster[10.0.0.1] local[]"},
		{"not when a ready one has none", thisNode, []service.Endpoint{ep("10.0.0.1", "zone=a"), ep("10.0.0.2")}, "cluster[10.0.0.1 10.0.0.2] local[]"},
		{"an unready one without does not matter", thisNode,
			[]service.Endpoint{ep("10.0.0.1", "zone=a"), ep("10.0.0.2", "zone=b"), ep("10.0.0.3", "unready")}, "cluster[10.0.0.1] local[]"},
		{"not when no endpoint is for this zone", thisNode, []service.Endpoint{ep("10.0.0.1", "zone=b"), ep("10.0.0.2", "zone=c")}, "cluster[10.0.0.1 10.0.0.2] local[]"},
		{"not on a node without a zone", service.Node{Name: "here"},
			[]service.Endpoint{ep("10.0.0.1", "zone=a"), ep("10.0.0.2", "zone=b")}, "cluster[10.0.0.1 10.0.0.2] local[]"},
		{"not by unready endpoints", thisNode, []service.Endpoint{ep("10.0.0.1", "zone=a", "unready"), ep("10.0.0.2", "zone=b")}, "cluster[10.0.0.2] local[]"},
		{"those for this node before those for the zone", thisNode,
			[]service.Endpoint{ep("10.0.0.1", "node=here", "zone=a"), ep("10.0.0.2", "node=there", "zone=a")}, "cluster[10.0.0.1] local[]"},
		{"those for the zone when none is for this node", thisNode,
			[]service.Endpoint{ep("10.0.0.1", "node=far", "zone=a"), ep("10.0.0.2", "node=there", "zone=b")}, "cluster[10.0.0.1] local[]"},
		{"those for the zone when a node hint is missing", thisNode,
			[]service.Endpoint{ep("10.0.0.1", "node=here", "zone=b"), ep("10.0.0.2", "zone=a")}, "cluster[10.0.0.2] local[]"},
		{"not by the last resort", thisNode,
			[]service.Endpoint{ep("10.0.0.1", "zone=a", "unready", "terminating"), ep("10.0.0.2", "zone=b", "unready", "terminating")},
			"cluster[10.0.0.1 10.0.0.2] local[]"},
		{"not by the local set", thisNode, []service.Endpoint{ep("10.0.0.1", "here", "zone=b"), ep("10.0.0.2", "zone=a")}, "cluster[10.0.0.2] local[10.0.0.1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			comp := New(Config{Node: c.node})
			comp.Apply(batch(aService("ns/web"), aSlice("ns/web-1", "web", c.endpoints...)))
			expect(t, "the choice", sets(http(t, comp)), c.want)
		})
	}
}

var thisNode = service.Node{Name: "here", Zone: "a"}

func TestNodeThatMovesJudgesAgain(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/web-1", "web", ep("10.0.0.1", "here", "zone=a"), ep("10.0.0.2", "zone=b")),
		aService("ns/plain", func(s *service.Service) { s.ClusterIPs = addrs("10.96.0.2") }), aSlice("ns/plain-1", "plain", ep("10.0.0.9")))
	expect(t, "in zone a", sets(http(t, c)), "cluster[10.0.0.1] local[10.0.0.1]")

	changes := c.Apply(batch(service.Node{Name: "here", Zone: "b"}))
	expect(t, "in zone b", sets(http(t, c)), "cluster[10.0.0.2] local[10.0.0.1]")
	expect(t, "what changed", changed(changes), "ns/web:http:IPv4")

	c.Apply(batch(service.Node{Name: "there", Zone: "b"}))
	expect(t, "under another name", sets(http(t, c)), "cluster[10.0.0.2] local[10.0.0.2]")

	if changes := c.Apply(batch(service.Node{Name: "there", Zone: "b", Addresses: addrs("192.0.2.9")})); len(changes) != 0 {
		t.Errorf("another address of the node changed %s", changed(changes))
	}
}

func TestBackendExistsWhileItsEndpointServes(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/web-1", "web",
		ep("10.0.0.1"), ep("10.0.0.2", "unready"), ep("10.0.0.3", "unready", "terminating"), ep("10.0.0.4", "unready", "unserving"), ep("10.0.0.5", "unserving")))
	p := http(t, c)
	want := map[string]State{"10.0.0.1:8080": Active, "10.0.0.2:8080": Draining, "10.0.0.3:8080": Draining, "10.0.0.5:8080": Active}
	for pos, b := range backends(p) {
		if b == (Backend{}) {
			continue
		}
		if b.State != want[b.Addr.String()] {
			t.Errorf("position %d: %v has state %v, want %v", pos, b.Addr, b.State, want[b.Addr.String()])
		}
		delete(want, b.Addr.String())
	}
	if len(want) > 0 {
		t.Errorf("no backend for %v", want)
	}
}

func TestEndpointsOfThisNodeComeFirst(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/web-1", "web", ep("10.0.0.1"), ep("10.0.0.2", "here"), ep("10.0.0.3"), ep("10.0.0.4", "here")))
	p := http(t, c)
	if len(p.Cluster) != 4 || !p.Backend(p.Cluster[0]).OnNode || !p.Backend(p.Cluster[1]).OnNode || p.Backend(p.Cluster[2]).OnNode {
		t.Errorf("the cluster set is %v of %v", p.Cluster, backends(p))
	}
	if p.Cluster[0] != p.Local[0] || p.Cluster[1] != p.Local[1] {
		t.Errorf("the local set %v is no prefix of the cluster set %v", p.Local, p.Cluster)
	}
}

func TestEndpointsBeyondTheLimitAreTheSameHoweverTheyCame(t *testing.T) {
	all := []service.Endpoint{ep("10.0.0.5"), ep("10.0.0.9", "here"), ep("10.0.0.1", "unready"), ep("10.0.0.2"), ep("10.0.0.7")}
	limited := func() *Compiler { return New(Config{Node: thisNode, MaxEndpoints: 3}) }

	atOnce := limited()
	atOnce.Apply(batch(aService("ns/web"), aSlice("ns/web-1", "web", all...)))
	stepwise := limited()
	for n := range all {
		stepwise.Apply(batch(aService("ns/web"), aSlice("ns/web-1", "web", all[:n+1]...)))
	}
	for _, c := range []*Compiler{atOnce, stepwise} {
		expect(t, "the choice", sets(http(t, c)), "cluster[10.0.0.2 10.0.0.5 10.0.0.9] local[10.0.0.9]")
		expect(t, "the problem", problems(c),
			`too-many-endpoints Service ns/web: port "http" has 5 endpoints (IPv4), of which 3 are used; split the Service`)
	}

	_, before := stepwise.Problems()
	stepwise.Apply(batch(aSlice("ns/web-1", "web", all[:3]...)))
	expect(t, "the problem, mended,", problems(stepwise), "")
	expect(t, "the choice", sets(http(t, stepwise)), "cluster[10.0.0.5 10.0.0.9] local[10.0.0.9]")
	if _, after := stepwise.Problems(); after == before {
		t.Error("the generation of the problems stayed")
	}
}
