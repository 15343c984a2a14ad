// SPDX-License-Identifier: Apache-2.0

// Needs root: BPF tables.

package maps

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"portolan.dev/portolan/bpf"
)

// filled makes tables that say, by hand, what the tests read back:
//
//	10.96.0.10:80/TCP   id 1, service port 5 default/web:http, slots 8 and 9
//	[fd00::10]:53/UDP   id 2, service port 6 default/dns:dns, no endpoint
func filled(t *testing.T) *Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF tables")
	}
	s, err := Create(Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, addr := range []string{"10.1.0.1:8080", "10.1.0.2:8080"} {
		at := netip.MustParseAddrPort(addr)
		*s.Backends4.At(uint32(3 + i)) = bpf.LbBackend4{Addr: Addr4(at.Addr()), Port: Port16(at.Port()), Proto: 6,
			Flags: BackendActive | BackendInCluster, ServicePort: 5, Generation: 7}
		*s.Slots.At(uint32(8 + i)) = bpf.LbSlot{Backend: uint32(3 + i), Generation: 7}
	}
	*s.FrontendState.At(1) = bpf.LbFrontendState{ServicePort: 5, Generation: 2, AffinityTimeout: 30,
		Internal: RangeWord(8, 2, RangeAffinity|RangeGuarded), External: RangeWord(8, 1, RangeLocal)}
	*s.FrontendState.At(2) = bpf.LbFrontendState{ServicePort: 6, Internal: RangeWord(0, 0, RangeRefuse)}
	must(s.ServiceNames.Put(5, named("web", "http", 6, 4)))
	must(s.ServiceNames.Put(6, named("dns", "dns", 17, 6)))
	must(s.Frontends4.Put(Frontend4Key(netip.MustParseAddrPort("10.96.0.10:80"), 6), 1))
	must(s.Frontends6.Put(Frontend6Key(netip.MustParseAddrPort("[fd00::10]:53"), 17), 2))
	must(s.Frontends4.Put(Frontend4Key(netip.MustParseAddrPort("10.96.0.10:0"), 0), AddressOurs))
	must(s.Frontends4.Put(Frontend4Key(netip.MustParseAddrPort("10.96.0.99:0"), 0), AddressElsewhere))
	must(s.Sources4.Put(Source4Key(5, netip.MustParsePrefix("192.0.2.0/24")), 1))
	must(s.NodeAddrs4.Put(Addr4(netip.MustParseAddr("127.0.0.1")), NodeAddrHostOnly))
	must(s.NodeAddrs6.Put(Addr16(netip.MustParseAddr("2001:db8::1")), 0))
	for _, addr := range []string{"10.96.0.10", "10.96.0.99", "fd00::10", "127.0.0.1", "2001:db8::1"} {
		bit := FilterBit(netip.MustParseAddr(addr), s.VIPFilter.Len()*64)
		s.VIPFilter.StoreWord(bit/64, 0, s.VIPFilter.LoadWord(bit/64, 0)|1<<(bit%64))
	}
	config := s.NodeConfig.At(0)
	config.ActiveCidrs = 1
	config.Cidrs[1] = bpf.LbCidrSet{Count: 3}
	for i, p := range []string{"fd00::/108", "10.96.0.0/12", "10.0.0.0/8"} {
		config.Cidrs[1].Cidrs[i] = CIDR(netip.MustParsePrefix(p))
	}
	return s
}

func named(name, port string, proto, family uint8) bpf.LbServiceName {
	n := bpf.LbServiceName{Proto: proto, Family: family}
	PutString(n.Namespace[:], "default")
	PutString(n.Name[:], name)
	PutString(n.Port[:], port)
	return n
}

func resolve(t *testing.T, s *Set) *Resolved {
	t.Helper()
	r, err := s.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestResolvingFollowsAFrontendToItsBackends(t *testing.T) {
	t.Parallel()
	r := resolve(t, filled(t))
	if len(r.Damage) > 0 || len(r.Frontends) != 2 {
		t.Fatalf("frontends %+v, damage %q", r.Frontends, r.Damage)
	}
	web := r.Frontends[0]
	if web.Addr.String() != "10.96.0.10:80" || web.Protocol != 6 || web.ID != 1 || web.Generation != 2 ||
		web.Name != (ServiceName{"default", "web", "http", 6, 4, 0}) || web.Affinity != 30 || !web.Guarded {
		t.Errorf("frontend %+v", web)
	}
	if got := addrs(web.Internal); !slices.Equal(got, []string{"10.1.0.1:8080", "10.1.0.2:8080"}) {
		t.Errorf("internal backends %q", got)
	}
	if got := addrs(web.External); !slices.Equal(got, []string{"10.1.0.1:8080"}) {
		t.Errorf("external backends %q", got)
	}
	if len(web.Sources) != 1 || web.Sources[0].String() != "192.0.2.0/24" {
		t.Errorf("source ranges %v", web.Sources)
	}
	if r.Backends != 2 || r.Draining != 0 || len(r.Unnamed) != 0 {
		t.Errorf("%d backends, %d draining, unnamed %v", r.Backends, r.Draining, r.Unnamed)
	}
}

func addrs(r Range) []string {
	var out []string
	for _, b := range r.Backends {
		out = append(out, b.Addr.String())
	}
	return out
}

func TestAnEmptyRangeTellsRefusalFromDrop(t *testing.T) {
	t.Parallel()
	dns := resolve(t, filled(t)).Frontends[1]
	if dns.Internal.Empty() != EmptyRefuse || dns.External.Empty() != EmptyDrop {
		t.Errorf("internal %q, external %q", dns.Internal.Empty(), dns.External.Empty())
	}
}

func TestResolvingReadsWhatIsTrueOfTheNode(t *testing.T) {
	t.Parallel()
	r := resolve(t, filled(t))
	if len(r.Owners) != 2 || r.Owners[netip.MustParseAddr("10.96.0.10")] != AddressOurs || r.Owners[netip.MustParseAddr("10.96.0.99")] != AddressElsewhere {
		t.Errorf("owners %v", r.Owners)
	}
	if len(r.NodeAddrs) != 2 || !r.NodeAddrs[netip.MustParseAddr("127.0.0.1")] || r.NodeAddrs[netip.MustParseAddr("2001:db8::1")] {
		t.Errorf("node addresses %v", r.NodeAddrs)
	}
	var cidrs []string
	for _, c := range r.CIDRs {
		cidrs = append(cidrs, c.String())
	}
	if !slices.Equal(cidrs, []string{"10.0.0.0/8", "10.96.0.0/12", "fd00::/108"}) {
		t.Errorf("service CIDRs %q", cidrs)
	}
}

func TestABackendThatNoRangeNamesIsListed(t *testing.T) {
	t.Parallel()
	s := filled(t)
	s.Backends6.At(4).Flags = BackendDraining
	r := resolve(t, s)
	if len(r.Unnamed) != 1 || r.Unnamed[0].ID != 4 || r.Draining != 1 || r.Backends != 3 {
		t.Errorf("unnamed %+v, %d of %d draining", r.Unnamed, r.Draining, r.Backends)
	}
}

func TestDamagedTablesAreDescribedAndReadToTheEnd(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		damage func(*Set)
		want   string
	}{
		{"a backend that is dead", func(s *Set) { s.Backends4.At(3).Flags = 0 }, "names backend 3, which is dead"},
		{"a backend that was replaced", func(s *Set) { s.Backends4.At(3).Generation = 8 }, "names generation 7 of backend 3, which has 8"},
		{"a backend of another service port", func(s *Set) { s.Backends4.At(3).ServicePort = 6 }, "of service port 6, not 5"},
		{"a slot that names no backend", func(s *Set) { s.Slots.At(8).Backend = s.Backends4.Len() }, "beyond the table"},
		{"a range beyond the slots", func(s *Set) {
			s.FrontendState.StoreWord(1, StateInternal, RangeWord(s.Slots.Len()-1, 2, 0))
		}, "are beyond the table"},
		{"a range whose end overflows", func(s *Set) {
			s.FrontendState.StoreWord(1, StateInternal, RangeWord(1<<32-1, MaxRange, 0))
		}, "are beyond the table"},
		{"a frontend without a state", func(s *Set) {
			if err := s.Frontends4.Put(Frontend4Key(netip.MustParseAddrPort("10.96.0.10:80"), 6), s.FrontendState.Len()); err != nil {
				t.Error(err)
			}
		}, "is beyond the table"},
		{"a service port without a name", func(s *Set) {
			if err := s.ServiceNames.Delete(5); err != nil {
				t.Error(err)
			}
		}, "service port 5 has no name"},
		{"an address that the filter hides", func(s *Set) {
			s.VIPFilter.StoreWord(FilterBit(netip.MustParseAddr("10.96.0.10"), s.VIPFilter.Len()*64)/64, 0, 0)
		}, "address 10.96.0.10: its bit in vip_filter is clear"},
		{"more service CIDRs than there is room for", func(s *Set) { s.NodeConfig.At(0).Cidrs[1].Count = 9 }, "9 of at most 8"},
		{"a mask with holes", func(s *Set) { s.NodeConfig.At(0).Cidrs[1].Cidrs[0].Mask.W[0] = 0x00ff00ff }, "the mask of fd00:: is none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := filled(t)
			test.damage(s)
			r := resolve(t, s)
			if !slices.ContainsFunc(r.Damage, func(d string) bool { return strings.Contains(d, test.want) }) {
				t.Errorf("damage %q, want %q", r.Damage, test.want)
			}
			if !slices.ContainsFunc(r.Frontends, func(f Frontend) bool { return f.Name.Name == "dns" }) {
				t.Error("the frontends after the damage were not read")
			}
		})
	}
}
