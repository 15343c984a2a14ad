// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"portolan.dev/portolan/pkg/service"
)

func TestSlicesAreMerged(t *testing.T) {
	serves := func(s *service.EndpointSlice, ports ...service.SlicePort) *service.EndpointSlice {
		s.Ports = ports
		return s
	}
	tcp := func(name string, number uint16) service.SlicePort {
		return service.SlicePort{Name: name, Protocol: service.TCP, Port: number}
	}
	for _, c := range []struct {
		name   string
		slices []any
		want   string
	}{
		{"two slices are a union", []any{aSlice("ns/1", "web", ep("10.0.0.1")), aSlice("ns/2", "web", ep("10.0.0.2"))}, "cluster[10.0.0.1 10.0.0.2] local[]"},
		{"an endpoint in both counts once", []any{aSlice("ns/1", "web", ep("10.0.0.1")), aSlice("ns/2", "web", ep("10.0.0.1"))}, "cluster[10.0.0.1] local[]"},
		{"an endpoint twice in one counts once", []any{aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.1"))}, "cluster[10.0.0.1] local[]"},
		{"running beats terminating, also for locality",
			[]any{aSlice("ns/1", "web", ep("10.0.0.1", "here", "unready", "terminating")), aSlice("ns/2", "web", ep("10.0.0.1"))}, "cluster[10.0.0.1] local[]"},
		{"running beats terminating in the other order",
			[]any{aSlice("ns/1", "web", ep("10.0.0.1")), aSlice("ns/2", "web", ep("10.0.0.1", "here", "unready", "terminating"))}, "cluster[10.0.0.1] local[]"},
		{"running beats terminating, even unready against ready",
			[]any{aSlice("ns/1", "web", ep("10.0.0.1", "terminating")), aSlice("ns/2", "web", ep("10.0.0.1", "unready"))}, "cluster[] local[] refuse"},
		{"one address with two numbers is two backends",
			[]any{aSlice("ns/1", "web", ep("10.0.0.1")), serves(aSlice("ns/2", "web", ep("10.0.0.1")), tcp("http", 9090))},
			"cluster[10.0.0.1 10.0.0.1:9090] local[]"},
		{"two numbers in one slice are two backends",
			[]any{serves(aSlice("ns/1", "web", ep("10.0.0.1")), tcp("http", 8080), tcp("http", 9090))}, "cluster[10.0.0.1 10.0.0.1:9090] local[]"},
		{"a slice that carries another port name does not count",
			[]any{serves(aSlice("ns/1", "web", ep("10.0.0.1")), tcp("metrics", 8080)), aSlice("ns/2", "web", ep("10.0.0.2"))}, "cluster[10.0.0.2] local[]"},
		{"a slice that carries another protocol does not count",
			[]any{serves(aSlice("ns/1", "web", ep("10.0.0.1")), service.SlicePort{Name: "http", Protocol: service.UDP, Port: 8080})}, "cluster[] local[] refuse"},
		{"a slice of the other family does not count", []any{aSlice("ns/1", "web", ep("fd00:10::1"))}, "cluster[] local[] refuse"},
		{"an endpoint of another family than its slice does not count",
			[]any{aSlice("ns/1", "web", ep("10.0.0.1"), ep("fd00:10::1"))}, "cluster[10.0.0.1] local[]"},
		{"a slice of another Service does not count", []any{aSlice("ns/1", "other", ep("10.0.0.1"))}, "cluster[] local[] refuse"},
		{"a slice of another namespace does not count", []any{aSlice("else/1", "web", ep("10.0.0.1"))}, "cluster[] local[] refuse"},
	} {
		t.Run(c.name, func(t *testing.T) {
			expect(t, "at once", sets(http(t, compiled(append(c.slices, aService("ns/web"))...))), c.want)
			stepwise := newCompiler()
			for _, s := range c.slices {
				stepwise.Apply(batch(s))
			}
			stepwise.Apply(batch(aService("ns/web")))
			expect(t, "slices first, one by one,", sets(http(t, stepwise)), c.want)
		})
	}
}

func TestSlicesChangeAndGo(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/1", "web", ep("10.0.0.1")), aSlice("ns/2", "web", ep("10.0.0.2")))
	for _, step := range []struct {
		name   string
		update Update
		want   string
	}{
		{"new content replaces the old whole", batch(aSlice("ns/1", "web", ep("10.0.0.3"))), "cluster[10.0.0.2 10.0.0.3] local[]"},
		{"a deleted slice takes its endpoints along", batch("~ns/2"), "cluster[10.0.0.3] local[]"},
		{"a slice may turn to another Service", batch(aSlice("ns/1", "other", ep("10.0.0.3"))), "cluster[] local[] refuse"},
		{"and back", batch(aSlice("ns/1", "web", ep("10.0.0.3"))), "cluster[10.0.0.3] local[]"},
		{"an emptied slice serves nobody", batch(aSlice("ns/1", "web")), "cluster[] local[] refuse"},
	} {
		c.Apply(step.update)
		expect(t, step.name+": the choice", sets(http(t, c)), step.want)
	}
}

func TestServiceGoneAndBackFindsItsSlices(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/1", "web", ep("10.0.0.1")))
	expect(t, "what changed", changed(c.Apply(batch("-ns/web"))), "-ns/web:http:IPv4")
	if p := c.Port(PortID{named("ns/web"), "http", service.TCP, service.IPv4}); p != nil {
		t.Errorf("%v is still there", p.ID)
	}
	c.Apply(batch(aSlice("ns/1", "web", ep("10.0.0.2"))))
	expect(t, "what changed", changed(c.Apply(batch(aService("ns/web")))), "ns/web:http:IPv4")
	expect(t, "the choice", sets(http(t, c)), "cluster[10.0.0.2] local[]")
}

func TestUpdateWithoutChangeChangesNothing(t *testing.T) {
	objects := func() []any {
		return []any{
			aService("ns/web", func(s *service.Service) { s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }),
			aSlice("ns/1", "web", ep("10.0.0.1", "here"), ep("10.0.0.2", "zone=a")), aSlice("ns/2", "web", ep("10.0.0.1")),
		}
	}
	c := compiled(objects()...)
	if changes := c.Apply(batch(objects()...)); len(changes) != 0 {
		t.Errorf("copies of the same objects changed %s", changed(changes))
	}
	shown := ep("10.0.0.1", "here")
	shown.Target = "pod-7" // shown, but of no consequence
	if changes := c.Apply(batch(aSlice("ns/1", "web", ep("10.0.0.2", "zone=a"), shown))); len(changes) != 0 {
		t.Errorf("another order of the endpoints changed %s", changed(changes))
	}
	if changes := c.Apply(batch("-ns/none", "~ns/none", thisNode)); len(changes) != 0 {
		t.Errorf("what was never there changed %s", changed(changes))
	}
}

// positionOf tells the position of each address of ns/web's port http.
func positionOf(p *Port) map[string]int {
	out := map[string]int{}
	for pos, b := range backends(p) {
		if b != (Backend{}) {
			out[b.Addr.Addr().String()] = pos
		}
	}
	return out
}

func TestEndpointKeepsItsPosition(t *testing.T) {
	first := aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.2"), ep("10.0.0.3"))
	for _, c := range []struct {
		name  string
		steps []Update
	}{
		{"when endpoints before it go", []Update{batch(aSlice("ns/1", "web", ep("10.0.0.3")))}},
		{"when others come before it", []Update{batch(aSlice("ns/1", "web", ep("10.0.0.9"), ep("10.0.0.8"), ep("10.0.0.3")))}},
		{"when the slice is shuffled", []Update{batch(aSlice("ns/1", "web", ep("10.0.0.3"), ep("10.0.0.1"), ep("10.0.0.2")))}},
		{"while it does not serve", []Update{
			batch(aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.3", "unready", "unserving"))),
			batch(aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.3", "unready", "unserving"), ep("10.0.0.7"), ep("10.0.0.8"))),
			batch(aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.3"), ep("10.0.0.7"), ep("10.0.0.8"))),
		}},
		{"when it moves to another slice at once", []Update{batch("~ns/1", aSlice("ns/2", "web", ep("10.0.0.9"), ep("10.0.0.3")))}},
		{"when it is in both slices for a while", []Update{
			batch(aSlice("ns/2", "web", ep("10.0.0.9"), ep("10.0.0.3"))),
			batch("~ns/1"),
		}},
		{"when the Service changes", []Update{batch(aService("ns/web", func(s *service.Service) { s.InternalLocal = true }))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			comp := compiled(aService("ns/web"), first)
			want, ok := positionOf(http(t, comp))["10.0.0.3"]
			if !ok {
				t.Fatal("10.0.0.3 has no position")
			}
			for _, u := range c.steps {
				comp.Apply(u)
			}
			if got, ok := positionOf(http(t, comp))["10.0.0.3"]; !ok || got != want {
				t.Errorf("10.0.0.3 is at %d (there: %v), want %d", got, ok, want)
			}
		})
	}
}

func TestPositionsAreUsedAgain(t *testing.T) {
	c := compiled(aService("ns/web"))
	for generation := range 100 {
		var endpoints []service.Endpoint
		for i := range 10 {
			endpoints = append(endpoints, ep(fmt.Sprintf("10.0.%d.%d", generation, i)))
		}
		c.Apply(batch(aSlice("ns/1", "web", endpoints...)))
	}
	if n := http(t, c).Positions(); n > 20 {
		t.Errorf("ten endpoints that were replaced a hundred times take %d positions", n)
	}
}

func TestEndpointThatReturnsAndOneThatIsNewGetAPositionEach(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.2")))
	c.Apply(batch(aSlice("ns/1", "web", ep("10.0.0.2"))))
	c.Apply(batch(aSlice("ns/1", "web", ep("10.0.0.2"), ep("10.0.0.1"), ep("10.0.0.3"))))
	expect(t, "the choice", sets(http(t, c)), "cluster[10.0.0.1 10.0.0.2 10.0.0.3] local[]")
	if n := http(t, c).Positions(); n != 3 {
		t.Errorf("three endpoints take %d positions", n)
	}
}

func TestTouchedNamesWhatDiffers(t *testing.T) {
	c := compiled(aService("ns/web"), aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.2"), ep("10.0.0.3", "unready", "terminating")))
	at := positionOf(http(t, c))

	one := c.Apply(batch(aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.2", "here"), ep("10.0.0.3", "unready", "terminating"))))
	if len(one) != 1 || one[0].All || !slices.Equal(one[0].Touched, []int32{int32(at["10.0.0.2"])}) {
		t.Errorf("an endpoint that moved to this node gave %+v", one)
	}
	last := c.Apply(batch(aSlice("ns/1", "web", ep("10.0.0.1", "unready", "unserving"), ep("10.0.0.2", "unready", "unserving"), ep("10.0.0.3", "unready", "terminating"))))
	if len(last) != 1 || last[0].All || len(last[0].Touched) != 3 {
		t.Errorf("the last resort coming into the set gave %+v", last)
	}
	expect(t, "the choice", sets(http(t, c)), "cluster[10.0.0.3] local[]")
}

func TestManyEndpointsInSlicesThatRepeatEachOther(t *testing.T) {
	const endpoints, perSlice, slicesOf = 5000, 1000, 10
	objects := []any{aService("ns/web")}
	for k := range slicesOf { // each endpoint is in two slices
		var list []service.Endpoint
		for i := range perSlice {
			at := (k*perSlice/2 + i) % endpoints
			list = append(list, ep(fmt.Sprintf("10.0.%d.%d", at/250, at%250)))
		}
		objects = append(objects, aSlice(fmt.Sprint("ns/", k), "web", list...))
	}
	c := compiled(objects...)
	if p := http(t, c); len(p.Cluster) != endpoints || p.Positions() != endpoints {
		t.Errorf("%d endpoints, each in two slices, are %d in the set at %d positions", endpoints, len(p.Cluster), p.Positions())
	}
	for k := range slicesOf / 2 {
		c.Apply(batch(fmt.Sprint("~ns/", 2*k)))
	}
	if p := http(t, c); len(p.Cluster) != endpoints || p.Positions() != endpoints {
		t.Errorf("with every second slice gone %d endpoints are in the set at %d positions, want %d", len(p.Cluster), p.Positions(), endpoints)
	}
}
