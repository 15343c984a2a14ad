// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"slices"
	"testing"
)

func TestModinfoTellsDependenciesAndAliases(t *testing.T) {
	m := parseModinfo("license=GPL\x00alias=net-pf-2-proto-132\x00alias=xt_MASQ\x00depends=libcrc32c,udp_tunnel\x00" +
		"softdep=pre: crc32c nf-nat post: later\x00softdep=post: never\x00intree=Y\x00\x00")
	if want := []string{"libcrc32c", "udp_tunnel", "crc32c", "nf_nat"}; !slices.Equal(m.Needs, want) {
		t.Errorf("needs %q, want %q", m.Needs, want)
	}
	if want := []string{"net_pf_2_proto_132", "xt_MASQ"}; !slices.Equal(m.Aliases, want) {
		t.Errorf("aliases %q, want %q", m.Aliases, want)
	}
	if m := parseModinfo("depends=\x00"); len(m.Needs) > 0 {
		t.Errorf("an empty list names %q", m.Needs)
	}
}

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	table := moduleTable{
		"veth":           {Aliases: []string{"rtnl_link_veth"}},
		"sctp":           {Needs: []string{"libcrc32c", "udp_tunnel", "ip6_udp_tunnel"}, Aliases: []string{"net_pf_2_proto_132", "net_pf_10_proto_132"}},
		"libcrc32c":      {Needs: []string{"crypto_crc32c"}},
		"crc32c_generic": {Aliases: []string{"crypto_crc32c"}},
		"ip6_udp_tunnel": {Needs: []string{"udp_tunnel"}},
		"udp_tunnel":     {},
		"a":              {Needs: []string{"b"}},
		"b":              {Needs: []string{"a"}},
		"virtio_pci":     {Aliases: []string{"pci:v00001AF4d*sv*sd*bc*sc*i*"}},
	}
	for request, want := range map[string][]string{
		"veth":               {"veth"},
		"rtnl-link-veth":     {"veth"},
		"net-pf-2-proto-132": {"crc32c_generic", "libcrc32c", "udp_tunnel", "ip6_udp_tunnel", "sctp"},
		"ip6-udp-tunnel":     {"udp_tunnel", "ip6_udp_tunnel"},
		"a":                  {"b", "a"}, // a circle ends
		"no-such-module":     nil,
		"":                   nil,
		"pci:v00001AF4d00001043sv0sd0bc07sc80i00": {"virtio_pci"},
	} {
		if got := table.resolve(request); !slices.Equal(got, want) {
			t.Errorf("%q loads %q, want %q", request, got, want)
		}
	}
}

func TestTheImageHoldsWantedModulesAndAllTheyNeed(t *testing.T) {
	says := map[string][]string{"sctp.ko": {"libcrc32c", "built_in"}, "libcrc32c.ko": {"sctp"}, "unused.ko": nil}
	files := map[string]string{"sctp": "sctp.ko", "libcrc32c": "libcrc32c.ko", "unused": "unused.ko"}
	table, err := closure([]string{"sctp", "not-in-this-kernel"}, files, func(file string) (*module, error) {
		return &module{Needs: says[file]}, nil
	})
	if got := slices.Sorted(maps.Keys(table)); err != nil || !slices.Equal(got, []string{"libcrc32c", "sctp"}) {
		t.Errorf("the image holds %q (%v)", got, err)
	}
	broken := errors.New("broken")
	if _, err := closure([]string{"sctp"}, files, func(string) (*module, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("a module that cannot be read: %v", err)
	}
}

func TestModulesAreKnownByTheKernelsName(t *testing.T) {
	for file, want := range map[string]string{
		"/lib/modules/6.1/kernel/net/xt_MASQUERADE.ko": "xt_MASQUERADE",
		"a/nf-nat.ko.xz": "nf_nat",
		"veth.ko":        "veth",
	} {
		if got := moduleName(file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}
