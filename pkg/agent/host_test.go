// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/config"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/service"
)

func TestTheNumberOfTrackedConnectionsIsKubeProxys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ perCore, least, processors, want int }{
		{0, 131072, 8, 0}, // left alone, whatever the least is
		{32768, 131072, 2, 131072},
		{32768, 131072, 8, 262144},
		{32768, 131072, 128, 1048576},
		{32768, 0, 1, 32768},
	} {
		if got := conntrackMax(&config.Conntrack{MaxPerCore: c.perCore, Min: c.least}, c.processors); got != c.want {
			t.Errorf("%d a core of %d, at least %d: %d, want %d", c.perCore, c.processors, c.least, got, c.want)
		}
	}
}

func TestConnectionTrackingIsOnlyEverRaised(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hashsize := filepath.Join(dir, "hashsize")
	have := map[string]string{
		"nf_conntrack_max": "65536\n", "hashsize": "16384\n",
		"nf_conntrack_tcp_timeout_established": "432000\n", "nf_conntrack_tcp_timeout_close_wait": "60\n",
		"nf_conntrack_udp_timeout": "30\n", "nf_conntrack_tcp_be_liberal": "0\n",
		// nf_conntrack_udp_timeout_stream is a setting that this kernel lacks.
	}
	for name, text := range have {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wanted := config.Conntrack{MaxPerCore: 32768, Min: 131072, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour, UDPStream: time.Minute, TCPBeLiberal: true}
	raised, err := raiseConntrack(dir, hashsize, &wanted, 4)
	want := []string{"nf_conntrack_max=131072", "hashsize=32768", "nf_conntrack_tcp_timeout_close_wait=3600", "nf_conntrack_tcp_be_liberal=1"}
	if err != nil || !slices.Equal(raised, want) {
		t.Errorf("raised %v, want %v; error %v", raised, want, err)
	}
	for name, text := range map[string]string{
		"nf_conntrack_max": "131072", "hashsize": "32768", "nf_conntrack_tcp_timeout_established": "432000\n",
		"nf_conntrack_tcp_timeout_close_wait": "3600", "nf_conntrack_udp_timeout": "30\n", "nf_conntrack_tcp_be_liberal": "1",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
			t.Errorf("%s is %q, want %q (%v)", name, got, text, err)
		}
	}
	if raised, err = raiseConntrack(dir, hashsize, &wanted, 4); err != nil || len(raised) > 0 {
		t.Errorf("the second time %v was raised; error %v", raised, err)
	}
	if raised, err = raiseConntrack(dir, hashsize, &config.Conntrack{}, 4); err != nil || len(raised) > 0 {
		t.Errorf("nothing was asked for, and %v was raised; error %v", raised, err)
	}
}

func TestASettingThatCannotBeRaisedIsNamedAndTheOthersAre(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nf_conntrack_udp_timeout"), []byte("30"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nf_conntrack_tcp_timeout_close_wait"), []byte("much"), 0o600); err != nil {
		t.Fatal(err)
	}
	raised, err := raiseConntrack(dir, filepath.Join(dir, "hashsize"), &config.Conntrack{TCPCloseWait: time.Hour, UDP: time.Minute}, 1)
	if !slices.Equal(raised, []string{"nf_conntrack_udp_timeout=60"}) || err == nil || !strings.Contains(err.Error(), "nf_conntrack_tcp_timeout_close_wait") {
		t.Errorf("raised %v, error %v", raised, err)
	}
}

func TestThePrimaryAddressIsTheConfiguredOneThenTheNodes(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	facts := node.Facts{Addrs: []netip.Addr{addr("127.0.0.1"), addr("192.0.2.1"), addr("192.0.2.2"), addr("2001:db8::1")}}
	primary, err := node.ParseSelection([]string{"primary"})
	if err != nil {
		t.Fatal(err)
	}
	n := service.Node{Name: "n", Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}}
	for configured, want := range map[netip.Addr]netip.Addr{{}: addr("192.0.2.1"), addr("192.0.2.2"): addr("192.0.2.2")} {
		got := primary.NodePortAddrs(facts, withPrimary(n, configured).Addresses)
		if _, ok := got[want]; !ok || len(got) != 2 {
			t.Errorf("with --bind-address %v NodePorts are served on %v", configured, got)
		}
	}
	if len(n.Addresses) != 2 {
		t.Error("the node's own list was changed")
	}
}
