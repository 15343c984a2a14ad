// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"net/netip"
	"testing"

	"portolan.dev/portolan/test/world"
)

// A machine that has a route to the pods, as another node has, reaches an
// endpoint through the Service and then, from the same port, by its own
// address.
func TestAConnectionToAnEndpointItselfFollowsOneThroughItsService(t *testing.T) {
	for _, m := range some(t, modes...) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m)
			s.routeBy(s.here, "10.244.1.0/24", "fd00:10:244:1::/64")
			s.serve(webService(), s.near[0])
			for i, family := range []struct{ frontend, endpoint, client netip.Addr }{
				{s.here.IPv4(), s.near[0].IPv4(), s.host.IPv4()},
				{s.here.IPv6(), s.near[0].IPv6(), s.host.IPv6()},
			} {
				for round := range 4 {
					from := world.From(netip.AddrPortFrom(family.client, uint16(20000+10*i+round)).String())
					through := netip.AddrPortFrom(family.frontend, 30080).String()
					direct := netip.AddrPortFrom(family.endpoint, 8080).String()
					for step, addr := range []string{through, direct, direct, through, direct} {
						if r := s.client.Dial("tcp", addr, from); r.Err() != nil {
							t.Errorf("step %d, %s: %v", step, addr, r)
						}
					}
				}
			}
		})
	}
}
