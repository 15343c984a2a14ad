// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"portolan.dev/portolan/bpf"
)

// covers is what programs compute (nobodys4 and nobodys6).
func (c Cover) covers(a netip.Addr) bool {
	if a.Is4() {
		return Addr4(a)&c.mask4 == c.prefix4
	}
	b := a.As16()
	return binary.NativeEndian.Uint64(b[:])&c.mask6 == c.prefix6
}

func cidrSet(prefixes ...netip.Prefix) *bpf.LbCidrSet {
	set := &bpf.LbCidrSet{Count: uint32(len(prefixes))}
	for i, p := range prefixes {
		set.Cidrs[i] = CIDR(p)
	}
	return set
}

func TestCoverTellsMostAddressesFromTheServiceCIDRs(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name            string
		cidrs           []netip.Prefix
		inside, outside []string
	}{
		{"none", nil, nil, []string{"0.0.0.0", "10.96.0.1", "255.255.255.255", "::", "fd00::1", "::1"}},
		{"IPv4", prefixes("10.96.0.0/12"), []string{"10.96.0.1", "10.111.255.255"}, []string{"10.95.0.1", "10.112.0.0", "fd00::1"}},
		{"IPv6", prefixes("fd00:10:96::/112"), []string{"fd00:10:96::1", "fd00:10:96::ffff"}, []string{"fd00:10:97::1", "10.96.0.1"}},
		{"two of IPv4", prefixes("10.96.0.0/16", "10.99.0.0/16"), []string{"10.96.0.1", "10.99.0.1"}, []string{"10.100.0.1", "10.95.0.1"}},
		{"both", prefixes("10.96.0.0/16", "fd00::/108"), []string{"10.96.1.1", "fd00::1"}, []string{"10.97.0.1", "fd01::1"}},
	} {
		cover := CoverOf(cidrSet(x.cidrs...))
		for _, a := range x.inside {
			if !cover.covers(netip.MustParseAddr(a)) {
				t.Errorf("%s: %s is not covered", x.name, a)
			}
		}
		for _, a := range x.outside {
			if cover.covers(netip.MustParseAddr(a)) {
				t.Errorf("%s: %s is covered", x.name, a)
			}
		}
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// No address in a service CIDR is ever outside the cover.
func TestCoverHoldsEveryServiceAddress(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "bytes")
			if rapid.Bool().Draw(t, "IPv4") {
				return netip.AddrFrom4([4]byte(b))
			}
			b[0] |= 0x20 // no mapped ones
			return netip.AddrFrom16([16]byte(b))
		})
		var set []netip.Prefix
		for range rapid.IntRange(1, len(bpf.LbCidrSet{}.Cidrs)).Draw(t, "count") {
			a := address.Draw(t, "address")
			set = append(set, netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked())
		}
		cover := CoverOf(cidrSet(set...))
		for _, p := range set {
			if !cover.covers(p.Addr()) {
				t.Fatalf("%v does not cover %v of %v", cover, p, set)
			}
		}
	})
}
