// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2, and bpffs at /sys/fs/bpf.

package loader

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	tables "portolan.dev/portolan/maps"
)

// pinned are the ids of the pinned tables.
func pinned(t *testing.T, cfg Config, set *tables.Set) map[string]ebpf.MapID {
	t.Helper()
	out := map[string]ebpf.MapID{}
	for _, name := range set.Names() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(TableDir(cfg.BPFFSRoot), name), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[name], _ = info.ID()
	}
	return out
}

// running are the programs of the hooks.
func running(t *testing.T, l *Loader) map[string]ebpf.ProgramID {
	t.Helper()
	out := map[string]ebpf.ProgramID{}
	for _, hook := range hooks {
		info, err := l.links[hook].Info()
		if err != nil {
			t.Fatal(err)
		}
		out[hook] = info.Program
	}
	return out
}

// When one program cannot be loaded for other tables, none is switched to them:
// whoever kept the old ones goes on to keep what all programs read.
func TestAProgramThatCannotBeLoadedLeavesAllOthersAsTheyAre(t *testing.T) {
	cfg := place(t)
	l := open(t, cfg)
	defer l.Close()
	old := tablesFor(t)
	if err := l.Attach(old); err != nil {
		t.Fatal(err)
	}
	// As if a device was served.
	if _, err := l.programs(variant{linkHeader: true}); err != nil {
		t.Fatal(err)
	}
	pins, programs := pinned(t, cfg, old), running(t, l)
	sweep, closeUDP, wire := l.sweep, l.closeUDP, l.wire[variant{linkHeader: true}]
	for program, table := range map[string]string{
		"socket": tables.SockPeer, "sweep": tables.Flows4, "wire": tables.Fragments,
	} {
		odd, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 3, ValueSize: 3, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		set := tablesFor(t)
		set.Map(table).Close()
		*set.Map(table) = *odd
		if err := l.Attach(set); err == nil {
			t.Fatalf("%s program was loaded with an odd table %s", program, table)
		}
		if !maps.Equal(pinned(t, cfg, old), pins) {
			t.Errorf("%s program not loaded: other tables are pinned", program)
		}
		if !maps.Equal(running(t, l), programs) {
			t.Errorf("%s program not loaded: hooks run other programs", program)
		}
		if l.sweep != sweep || l.closeUDP != closeUDP || l.wire[variant{linkHeader: true}] != wire {
			t.Errorf("%s program not loaded: others were replaced", program)
		}
	}
	if _, err := l.Sweep(); err != nil {
		t.Error(err)
	}
}
