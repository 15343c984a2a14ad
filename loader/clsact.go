// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Filters of ours are known by priority and handle: nobody else's are touched.
const (
	filterPriority = 1
	filterHandle   = 0x706f7274 // "port"
	filterName     = "portolan"
)

// filterLink is a filter of a clsact queueing discipline, for kernels without
// tcx (before Linux 6.6). The kernel keeps it without any pin.
type filterLink struct {
	index int
	side  int
}

func (l *Loader) attachFilter(d *wireDevice, side int, program *ebpf.Program) (hookLink, error) {
	if err := ensureClsact(d.Index); err != nil {
		return nil, err
	}
	f := filterLink{index: d.Index, side: side}
	return f, f.Update(program)
}

func ensureClsact(index int) error {
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return nil
}

func (f filterLink) parent() uint32 {
	if f.side == 0 {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func (f filterLink) attrs() netlink.FilterAttrs {
	return netlink.FilterAttrs{LinkIndex: f.index, Parent: f.parent(), Handle: filterHandle, Protocol: unix.ETH_P_ALL, Priority: filterPriority}
}

// Update replaces the filter in place: there is no moment without it.
func (f filterLink) Update(program *ebpf.Program) error {
	err := netlink.FilterReplace(&netlink.BpfFilter{FilterAttrs: f.attrs(), Fd: program.FD(), Name: filterName, DirectAction: true})
	if err != nil {
		return fmt.Errorf("replace filter: %w", err)
	}
	return nil
}

func (f filterLink) Detach() error {
	err := netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: f.attrs(), Name: filterName})
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EINVAL) {
		return nil // gone with its device
	}
	return err
}

func (f filterLink) Close() error { return nil }

// removeFilters takes away our filters from devices that are not wanted, and,
// where tcx serves, from all: an earlier agent may have run on another kernel.
// It tells whether it could look. It lists the filters of every device, and
// there may be thousands: once is enough, for what this loader attaches it
// detaches.
func (l *Loader) removeFilters(wanted map[int]Device) bool {
	links, err := netlink.LinkList()
	if err != nil {
		return false
	}
	clsact := l.cfg.WithoutTCX || haveTCX() != nil
	for _, dev := range links {
		if _, keep := wanted[dev.Attrs().Index]; !keep || !clsact {
			ourFilters(dev, true)
		}
	}
	return true
}

// ourFilters counts our filters of a device, and takes them off if told to.
func ourFilters(dev netlink.Link, remove bool) int {
	found := 0
	for side := range sideNames {
		f := filterLink{index: dev.Attrs().Index, side: side}
		filters, err := netlink.FilterList(dev, f.parent())
		if err != nil {
			continue
		}
		for _, have := range filters {
			ours, ok := have.(*netlink.BpfFilter)
			if !ok || ours.Attrs().Handle != filterHandle || ours.Attrs().Priority != filterPriority {
				continue
			}
			if !remove || f.Detach() == nil {
				found++
			}
		}
	}
	return found
}
