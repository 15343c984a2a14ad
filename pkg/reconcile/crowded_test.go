// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
)

// A frontend that finds no place in its table, though the table is not full by
// count, is there all the same, in a larger one.
func TestAFrontendWithoutAPlaceGetsALargerTable(t *testing.T) {
	requireRoot(t)
	b := newBench(t, nil, many(0, 1))
	defer func() { b.r.set.Close() }()
	for n, before := uint32(0), b.r.set.Sizes().Frontends4; n < 8*before; n++ {
		var at [4]byte
		binary.BigEndian.PutUint32(at[:], 192<<24+n)
		// Those without a place are as good: all places are taken in the end.
		_ = b.r.set.Frontends4.Put(maps.Frontend4Key(netip.AddrPortFrom(netip.AddrFrom4(at), 1), 6), 0)
	}
	before := b.r.set.Sizes()
	b.apply(t, many(7, 1))
	key := maps.Frontend4Key(netip.AddrPortFrom(addrAt("10.96.0.0", 7), 80), 6)
	if _, found := b.r.set.Frontends4.Get(key); !found {
		t.Error("the frontend is not in its table")
	}
	after := b.r.set.Sizes()
	if after.Frontends4 <= before.Frontends4 || after.Frontends6 != before.Frontends6 {
		t.Errorf("sizes were %+v and are %+v", before, after)
	}
	// What goes when it is the turn of its place in the old table harms nobody.
	b.recycle()
	if _, found := b.r.set.Frontends4.Get(key); !found {
		t.Error("the frontend is gone")
	}
}

// Programs have what the service CIDRs have in common as a constant.
func TestOtherServiceCIDRsLoadProgramsAnew(t *testing.T) {
	requireRoot(t)
	b := newBench(t, nil, compile.Update{})
	defer func() { b.r.set.Close() }()
	loads := func(cidrs ...string) int {
		t.Helper()
		before, node := b.attached, testNode
		node.ServiceCIDRs = nil
		for _, c := range cidrs {
			node.ServiceCIDRs = append(node.ServiceCIDRs, netip.MustParsePrefix(c))
		}
		if err := b.r.ApplyNode(node); err != nil {
			t.Fatal(err)
		}
		return b.attached - before
	}
	for _, x := range []struct {
		cidrs []string
		loads int
	}{
		{[]string{"10.96.0.0/16", "fd00:96::/112"}, 0},
		{[]string{"10.96.0.0/16", "10.100.0.0/16", "fd00:96::/112"}, 1},
		{[]string{"10.96.0.0/16", "10.99.0.0/16", "10.100.0.0/16", "fd00:96::/112"}, 0},
		{nil, 1},
	} {
		if got := loads(x.cidrs...); got != x.loads {
			t.Errorf("service CIDRs %v: programs were loaded %d times, want %d", x.cidrs, got, x.loads)
		}
	}
}
