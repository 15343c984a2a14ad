// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2, and bpffs at /sys/fs/bpf.

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"portolan.dev/portolan/maps"
)

// place makes a cgroup and names a directory of pins for one test.
func place(t *testing.T) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF programs")
	}
	mount, err := FindCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	cgroup, err := os.MkdirTemp(mount, "portolan-loader-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(cgroup) })
	root := filepath.Join("/sys/fs/bpf", filepath.Base(cgroup))
	t.Cleanup(func() {
		if _, err := Cleanup(root, false); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(root); err == nil {
			t.Errorf("%s is left behind", root)
		}
	})
	return Config{BPFFSRoot: root, CgroupRoot: cgroup}
}

func open(t *testing.T, cfg Config) *Loader {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func tablesFor(t *testing.T) *maps.Set {
	t.Helper()
	set, err := maps.Create(maps.Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	return set
}

func wants(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want one that says %q", err, part)
		}
	}
}

func TestAWrongPlaceIsNamedByItsFlagWithTheMend(t *testing.T) {
	cfg := place(t)
	_, err := Open(Config{BPFFSRoot: cfg.BPFFSRoot, CgroupRoot: t.TempDir()})
	wants(t, err, "--cgroup-root", "not a cgroup2 directory", "cgroup2 is mounted at")
	_, err = Open(Config{BPFFSRoot: filepath.Join(t.TempDir(), "portolan"), CgroupRoot: cfg.CgroupRoot})
	wants(t, err, "--bpffs-root", "not on a bpffs", "mount -t bpf bpf")
}

func TestASecondAgentIsRefusedWhileTheFirstHoldsTheDirectory(t *testing.T) {
	cfg := place(t)
	first := open(t, cfg)
	_, err := Open(cfg)
	if !errors.Is(err, ErrInUse) {
		t.Errorf("second agent: %v", err)
	}
	wants(t, err, "--bpffs-root", "directory of its own")
	if _, err := Cleanup(cfg.BPFFSRoot, false); !errors.Is(err, ErrInUse) {
		t.Errorf("cleanup beside an agent: %v", err)
	}
	first.Close()
	open(t, cfg).Close()
}

func TestTablesOfAnUnknownLayoutAreRefusedAndKept(t *testing.T) {
	cfg := place(t)
	l := open(t, cfg)
	defer l.Close()
	set := tablesFor(t)
	if err := l.Attach(set); err != nil {
		t.Fatal(err)
	}
	odd, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 12, ValueSize: 4, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer odd.Close()
	path := filepath.Join(TableDir(cfg.BPFFSRoot), maps.Frontends4)
	if err := errors.Join(os.Remove(path), odd.Pin(path)); err != nil {
		t.Fatal(err)
	}
	_, err = l.Adopt()
	if !errors.Is(err, maps.ErrLayout) {
		t.Errorf("adopt: %v", err)
	}
	wants(t, err, "frontends4", "portolan cleanup")
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the odd table was removed: %v", err)
	}
}

func TestTablesAndLinksOutliveTheLoaderAndAreFoundAgain(t *testing.T) {
	cfg := place(t)
	l := open(t, cfg)
	if _, err := l.Adopt(); !errors.Is(err, maps.ErrNotPinned) {
		t.Errorf("adopt from nothing: %v", err)
	}
	set := tablesFor(t)
	set.FrontendState.At(5).Generation = 77
	if err := l.Attach(set); err != nil {
		t.Fatal(err)
	}
	before := linkIDs(t, cfg)
	l.Close()
	l = open(t, cfg)
	defer l.Close()
	again, err := l.Adopt()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.FrontendState.Load(5).Generation != 77 {
		t.Error("the adopted tables are others")
	}
	if err := l.Attach(again); err != nil {
		t.Fatal(err)
	}
	for hook, id := range linkIDs(t, cfg) {
		if id != before[hook] {
			t.Errorf("%s was attached anew: a link is only ever updated", hook)
		}
	}
	for _, a := range Attachments(cfg.BPFFSRoot) {
		if !a.Attached {
			t.Errorf("%s is not attached: %s", a.Hook, a.Error)
		}
	}
}

func linkIDs(t *testing.T, cfg Config) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, hook := range hooks {
		l := &Loader{cgroup: mustCgroup(t, cfg)}
		l.links = map[string]link.Link{}
		pinned, err := l.pinnedLink(hook, filepath.Join(linkDir(cfg.BPFFSRoot), hook))
		if err != nil || pinned == nil {
			t.Fatalf("link of %s: %v", hook, err)
		}
		info, err := pinned.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[hook] = uint64(info.ID)
		pinned.Close()
	}
	return out
}

func mustCgroup(t *testing.T, cfg Config) uint64 {
	t.Helper()
	id, err := cgroupID(cfg.CgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestEveryRequiredFeatureOfThisKernelIsFound(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: feature probes load programs")
	}
	if err := MissingFeatures(); err != nil {
		t.Error(err)
	}
}

// Programs are loaded anew for the tables that they have when a constant of
// theirs changes.
func TestTheSameTablesMayBeAttachedAgain(t *testing.T) {
	cfg := place(t)
	l := open(t, cfg)
	defer l.Close()
	set := tablesFor(t)
	for range 3 {
		if err := l.Attach(set); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range set.Names() {
		if _, err := os.Stat(filepath.Join(TableDir(cfg.BPFFSRoot), name)); err != nil {
			t.Errorf("table %s: %v", name, err)
		}
	}
	found, err := l.Adopt()
	if err != nil {
		t.Fatal(err)
	}
	found.Close()
}
