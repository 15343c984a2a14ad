// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	"portolan.dev/portolan/pkg/service"
)

// What is not in the endpoints' facts must be noticed all the same.
func TestWeightsAndNodesOfEndpointsAreFollowed(t *testing.T) {
	slice := func(weight uint32, nodes ...string) *service.EndpointSlice {
		s := aSlice("ns/1", "web", ep("10.0.0.1"), ep("10.0.0.2"))
		s.Weight = weight
		for i := range nodes {
			s.Endpoints[i].NodeName = nodes[i]
		}
		return s
	}
	c := compiled(aService("ns/web", balanced), slice(0))
	for _, step := range []struct {
		name     string
		slice    *service.EndpointSlice
		weight   uint32
		nodeless [2]bool
	}{
		{"another weight", slice(7), 7, [2]bool{}},
		{"no weight", slice(0), 1, [2]bool{}},
		{"one has no node", slice(0, "", "there"), 1, [2]bool{true, false}},
		{"the other one has none", slice(0, "there", ""), 1, [2]bool{false, true}},
		{"both have one", slice(0, "there", "there"), 1, [2]bool{}},
	} {
		changes := c.Apply(batch(step.slice))
		p := http(t, c)
		for pos := range int32(2) {
			if p.Weight(pos) != step.weight || p.Backend(pos).Nodeless != step.nodeless[pos] {
				t.Errorf("%s: %v weighs %d, nodeless %v", step.name, p.Backend(pos).Addr, p.Weight(pos), p.Backend(pos).Nodeless)
			}
		}
		if len(changes) != 1 || !changes[0].All {
			t.Errorf("%s: changes %+v", step.name, changes)
		}
	}
	c.Apply(batch(aSlice("ns/2", "web", ep("10.0.0.1")), slice(0, "", "")))
	if p := http(t, c); p.Backend(0).Nodeless || !p.Backend(1).Nodeless {
		t.Error("an endpoint is where any of its slices says it is")
	}
}
