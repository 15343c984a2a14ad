// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/test/world"
)

// next is the loader of an agent that follows the one of l, with another
// configuration.
func next(t *testing.T, l *Loader, set *maps.Set, edit func(*Config)) *Loader {
	t.Helper()
	cfg := l.cfg
	edit(&cfg)
	l.Close()
	l = open(t, cfg)
	t.Cleanup(func() { l.Close() })
	if err := l.Attach(set); err != nil {
		t.Fatal(err)
	}
	return l
}

// What an earlier agent left would decide first, by tables that nobody keeps.
func TestAnXDPProgramThatIsNotWantedAnyMoreIsTakenOff(t *testing.T) {
	attachedTo(t, Config{XDP: XDPGeneric}, func(l *Loader, set *maps.Set, uplink int) {
		served := Device{Index: uplink, Name: "eth0", LinkHeader: true}
		for name, c := range map[string]struct {
			mode   XDPMode
			device Device
		}{
			"--xdp disabled": {XDPDisabled, served},
			"a pod's device": {XDPGeneric, Device{Index: uplink, Name: "eth0", LinkHeader: true, Pod: true}},
			"no link header": {XDPGeneric, Device{Index: uplink, Name: "eth0"}},
		} {
			if l.SetDevices([]Device{served}); attachedMode(uplink) == 0 {
				t.Fatalf("%s: no XDP program to begin with", name)
			}
			l = next(t, l, set, func(cfg *Config) { cfg.XDP = c.mode })
			if s := l.SetDevices([]Device{c.device}); len(s) != 1 || s[0].XDP != "none" || s[0].Problem != "" {
				t.Errorf("%s: status is %+v", name, s)
			}
			if attachedMode(uplink) != 0 {
				t.Errorf("%s: eth0 has an XDP program still", name)
			}
			if _, err := os.Stat(filepath.Join(linkDir(l.cfg.BPFFSRoot), fmt.Sprintf(xdpPin, uplink))); err == nil {
				t.Errorf("%s: its link is pinned still", name)
			}
			l = next(t, l, set, func(cfg *Config) { cfg.XDP = XDPGeneric })
		}
	})
}

func TestADeviceThatCannotBeServedHasNoHook(t *testing.T) {
	attachedTo(t, Config{}, func(l *Loader, _ *maps.Set, _ int) {
		s := l.SetDevices([]Device{{Index: 1 << 20, Name: "nowhere", LinkHeader: true}})
		if len(s) != 1 || s[0].Hook != "" || s[0].XDP != "none" || s[0].Problem == "" {
			t.Errorf("status is %+v", s)
		}
	})
}

// A look takes two lists of filters a device, and who changes devices waits.
func TestFiltersOfAnEarlierAgentAreLookedForOnce(t *testing.T) {
	attachedTo(t, Config{}, func(l *Loader, set *maps.Set, uplink int) {
		devices := []Device{{Index: uplink, Name: "eth0", LinkHeader: true}}
		lo := world.Must(netlink.LinkByName("lo"))(t)
		if _, err := l.attachFilter(&wireDevice{Device: Device{Index: lo.Attrs().Index}}, 0, l.wire[devices[0].variant()].sides[0]); err != nil {
			t.Fatal(err)
		}
		l.SetDevices(devices)
		if n := ourFilters(lo, false); n != 1 {
			t.Errorf("%d filters are left after a change of the devices, want 1: they were looked for again", n)
		}
		next(t, l, set, func(*Config) {}).SetDevices(devices)
		if n := ourFilters(lo, false); n != 0 {
			t.Errorf("%d filters are left by the next agent", n)
		}
	})
}
