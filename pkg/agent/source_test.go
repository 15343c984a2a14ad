// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
)

func TestTheSourceOnADeviceIsNoAddressThatMayMove(t *testing.T) {
	outside := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		name  string
		addrs []netip.Addr
		want  string
	}{
		{"the only one", []netip.Addr{netip.MustParseAddr("10.0.0.1")}, "10.0.0.1"},
		{"the first of two", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")}, "10.0.0.1"},
		{"the one towards the outside", []netip.Addr{netip.MustParseAddr("192.0.2.9"), outside}, "192.0.2.1"},
		{"that of another device where there is none of the family", []netip.Addr{netip.MustParseAddr("fd00::1")}, "192.0.2.1"},
	} {
		if got := sourceOn(c.addrs, outside, netip.Addr.Is4); got.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
