// SPDX-License-Identifier: Apache-2.0

package node

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addrs(texts string) []netip.Addr {
	var out []netip.Addr
	for _, text := range strings.Fields(texts) {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func TestNodePortsAreServedOnTheSelectedAddresses(t *testing.T) {
	t.Parallel()
	facts := Facts{
		Addrs:   addrs("127.0.0.1 ::1 192.0.2.1 198.51.100.1 2001:db8::1 2001:db8:9::1"),
		Source4: netip.MustParseAddr("192.0.2.1"), Source6: netip.MustParseAddr("2001:db8::1"),
	}
	for _, c := range []struct{ name, list, primary, want string }{
		{"by default every address", "", "", "127.0.0.1 192.0.2.1 198.51.100.1 ::1 2001:db8::1 2001:db8:9::1"},
		{"all", "all", "", "127.0.0.1 192.0.2.1 198.51.100.1 ::1 2001:db8::1 2001:db8:9::1"},
		{"the primary of each family, by the default route", "primary", "", "192.0.2.1 2001:db8::1"},
		{"the primary of each family, as the Node says", "primary", "198.51.100.1 2001:db8:9::1", "198.51.100.1 2001:db8:9::1"},
		{"loopback only", "localhost", "", "127.0.0.1 ::1"},
		{"primary and loopback", "primary,localhost", "", "127.0.0.1 192.0.2.1 ::1 2001:db8::1"},
		{"addresses inside a range, and the other family whole", "192.0.2.0/24", "", "192.0.2.1 2001:db8::1 2001:db8:9::1"},
		{"ranges of both families", "192.0.2.0/24,2001:db8:9::/48", "", "192.0.2.1 2001:db8:9::1"},
		{"a range of everything does not mean loopback", "0.0.0.0/0,::/0", "", "192.0.2.1 198.51.100.1 2001:db8::1 2001:db8:9::1"},
		{"a range of loopback does", "127.0.0.0/8,2001:db8:9::/48", "", "127.0.0.1 2001:db8:9::1"},
		{"a range of nobody, and the other family whole", "203.0.113.0/24", "", "2001:db8::1 2001:db8:9::1"},
	} {
		s, err := ParseSelection(strings.Split(c.list, ","))
		if err != nil {
			t.Fatal(err)
		}
		got := s.NodePortAddrs(facts, addrs(c.primary))
		var texts []string
		for _, a := range slices.SortedFunc(maps.Keys(got), netip.Addr.Compare) {
			texts = append(texts, a.String())
			if got[a] != a.IsLoopback() {
				t.Errorf("%s: %s for the host only: %v", c.name, a, got[a])
			}
		}
		if strings.Join(texts, " ") != c.want {
			t.Errorf("%s (%s): %v, want %s", c.name, c.list, texts, c.want)
		}
	}
	for _, bad := range []string{"192.0.2.1", "secondary", "192.0.2.0/33"} {
		if _, err := ParseSelection([]string{bad}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v, want an error that names it", bad, err)
		}
	}
}
