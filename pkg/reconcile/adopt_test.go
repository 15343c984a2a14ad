// SPDX-License-Identifier: Apache-2.0

// Needs root: real tables, no programs.

package reconcile

import (
	"net/netip"
	"slices"
	"testing"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/service"
)

// What is no Service's port on an address of the node is the node's own, also
// while a new agent adopts the tables: programs are running. An entry that came
// and went has left its value behind.
func TestAnAddressOfTheNodeIsAtNoTimePublishedWhileTablesAreAdopted(t *testing.T) {
	requireRoot(t)
	all := many(0, 3)
	b := newBench(t, nil, all)
	all.Services[service.Name{Namespace: "many", Name: "s000000"}].ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	b = newBench(t, b.r.set, all)
	defer func() { b.r.set.Close() }()
	var bucket bpf.LbFrontend4Bucket
	places := b.r.set.Map(maps.Frontends4).Iterate()
	for i := uint32(0); places.Next(&i, &bucket); {
		if slices.Contains(bucket.Values[:], maps.AddressPublished) {
			t.Error("the address was published")
		}
	}
	if err := places.Err(); err != nil {
		t.Fatal(err)
	}
}
