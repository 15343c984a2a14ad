// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Attachment is a hook and whether a program of ours runs there.
type Attachment struct {
	Hook     string `json:"hook"`   // "cgroup/connect4"
	Device   string `json:"device"` // the cgroup's id, or a network device
	Mode     string `json:"mode"`   // "link"
	Attached bool   `json:"attached"`
	// Error says why not, when it is not.
	Error string `json:"error,omitempty"`
}

// Attachments reads from the pins which hooks a program is attached to. It
// works while no agent runs, and takes no lock.
func Attachments(root string) []Attachment {
	out := make([]Attachment, 0, len(hooks))
	for _, hook := range hooks {
		name, _ := hookType(hook)
		a := Attachment{Hook: name, Mode: "link"}
		pinned, err := link.LoadPinnedLink(filepath.Join(linkDir(root), hook), nil)
		if err == nil {
			a.Device, err = cgroupOf(pinned)
			pinned.Close()
		}
		a.Attached = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			a.Error = "no link is pinned"
		} else if err != nil {
			a.Error = err.Error()
		}
		out = append(out, a)
	}
	return out
}

func cgroupOf(pinned link.Link) (string, error) {
	info, err := pinned.Info()
	if err != nil {
		return "", fmt.Errorf("read link: %w", err)
	}
	cgroup := info.Cgroup()
	if cgroup == nil || cgroup.CgroupId == 0 {
		return "", errors.New("its cgroup is gone")
	}
	return fmt.Sprintf("cgroup %d", cgroup.CgroupId), nil
}

// Cleanup detaches every program and removes every pin below root. It refuses
// with ErrInUse while an agent runs there. With dryRun it only tells. The
// result names what was (or would be) removed.
func Cleanup(root string, dryRun bool) ([]string, error) {
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	lock, err := lockRoot(root)
	if err != nil {
		return nil, err
	}
	defer unlockRoot(lock)
	removed, err := cleanDevices(dryRun)
	if err != nil {
		return removed, err
	}
	// Links first: no program may outlive the tables that explain it.
	for _, dir := range []string{linkDir(root), TableDir(root)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("clean up: %w", err)
		}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			if !dryRun {
				if err := os.Remove(path); err != nil {
					return removed, fmt.Errorf("clean up: %w", err)
				}
			}
			removed = append(removed, path)
		}
		if !dryRun {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return removed, fmt.Errorf("clean up: %w", err)
			}
		}
	}
	if !dryRun {
		if err := os.Remove(root); err != nil {
			return removed, fmt.Errorf("clean up: %w", err)
		}
	}
	return removed, nil
}

// cleanDevices removes our filters from the devices of this network namespace:
// on kernels without tcx no pin stands for them.
func cleanDevices(dryRun bool) ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("clean up: list devices: %w", err)
	}
	var removed []string
	for _, dev := range links {
		if n := ourFilters(dev, !dryRun); n > 0 {
			removed = append(removed, fmt.Sprintf("%d tc filters of device %s", n, dev.Attrs().Name))
		}
	}
	return removed, nil
}

// PinnedDevices reads from the pins, and from the devices themselves, which
// devices of this network namespace are served. It works while no agent runs.
func PinnedDevices(root string) []DeviceStatus {
	out := []DeviceStatus{}
	links, err := netlink.LinkList()
	if err != nil {
		return out
	}
	for _, dev := range links {
		index := dev.Attrs().Index
		s := DeviceStatus{Name: dev.Attrs().Name, XDP: "none"}
		pinned := func(format string, args ...any) bool {
			_, err := os.Stat(filepath.Join(linkDir(root), fmt.Sprintf(format, args...)))
			return err == nil
		}
		switch {
		case pinned(tcPin, index, sideNames[0]):
			s.Hook = "tcx"
		case ourFilters(dev, false) > 0:
			s.Hook = "clsact"
		default:
			continue
		}
		if pinned(xdpPin, index) {
			s.XDP = xdpName(attachedMode(index))
		}
		out = append(out, s)
	}
	return out
}
