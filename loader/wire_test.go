// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"portolan.dev/portolan/maps"
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
	for name, c := range map[string]struct {
		mode   XDPMode
		device Device
	}{
		"--xdp disabled":   {XDPDisabled, Device{Name: "eth0", LinkHeader: true}},
		"a pod's device":   {XDPGeneric, Device{Name: "eth0", LinkHeader: true, Pod: true}},
		"no link's header": {XDPGeneric, Device{Name: "eth0"}},
	} {
		attachedTo(t, Config{XDP: XDPGeneric}, func(l *Loader, set *maps.Set, uplink int) {
			if attachedMode(uplink) == 0 {
				t.Fatal("no XDP program to begin with")
			}
			l = next(t, l, set, func(cfg *Config) { cfg.XDP = c.mode })
			c.device.Index = uplink
			if s := l.SetDevices([]Device{c.device}); len(s) != 1 || s[0].XDP != "none" || s[0].Problem != "" {
				t.Errorf("%s: status is %+v", name, s)
			}
			if attachedMode(uplink) != 0 {
				t.Errorf("%s: eth0 has an XDP program still", name)
			}
			if _, err := os.Stat(filepath.Join(linkDir(l.cfg.BPFFSRoot), fmt.Sprintf(xdpPin, uplink))); err == nil {
				t.Errorf("%s: its link is pinned still", name)
			}
		})
	}
}
