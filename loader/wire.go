// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
)

// XDPMode says how packets are to be taken before the stack.
type XDPMode string

// The modes, as --xdp writes them.
const (
	XDPDisabled   XDPMode = "disabled"
	XDPBestEffort XDPMode = "best-effort" // native, else generic, else none
	XDPGeneric    XDPMode = "generic"
	XDPNative     XDPMode = "native"
)

// Device is a network device whose traffic is translated.
type Device struct {
	Index int
	Name  string
	// LinkHeader: its packets begin with an Ethernet header.
	LinkHeader bool
	// Pod: it leads to a pod, and has no XDP program.
	Pod bool
}

// DeviceStatus is what serves a device.
type DeviceStatus struct {
	Name string `json:"name"`
	Pod  bool   `json:"pod,omitempty"`
	// Hook is "tcx" or "clsact", once both sides have programs.
	Hook string `json:"hook,omitempty"`
	// XDP is "native", "generic" or "none".
	XDP string `json:"xdp"`
	// Lost are the hooks, "tc" or "xdp", that were attached and are not any more.
	Lost []string `json:"lost,omitempty"`
	// Problem says what is not as it was asked for.
	Problem string `json:"problem,omitempty"`
}

// variant is what a program has to know of its device when it is loaded.
type variant struct{ linkHeader, pod bool }

func (d *Device) variant() variant { return variant{d.LinkHeader, d.Pod} }

// wireDevice is a device that is being served.
type wireDevice struct {
	Device
	status DeviceStatus
	tc     [2]hookLink // ingress, egress
	xdp    link.Link
}

// hookLink attaches a program to one side of a device; switching it to another
// program leaves no moment without one.
type hookLink interface {
	Update(*ebpf.Program) error
	running() (ebpf.ProgramID, error)
	Detach() error
	Close() error
}

// wirePrograms are the programs of one variant.
type wirePrograms struct {
	sides [2]*ebpf.Program // ingress, egress
	xdp   *ebpf.Program
}

func (p *wirePrograms) close() {
	p.sides[0].Close()
	p.sides[1].Close()
	if p.xdp != nil {
		p.xdp.Close()
	}
}

// SetDevices makes exactly these devices served, and returns how each is. A
// device that could not be served in the asked way says so in its status; it
// keeps what it has. Before the first Attach that succeeds nothing is done:
// there are no tables to serve from.
func (l *Loader) SetDevices(devices []Device) []DeviceStatus {
	if l.tables == nil {
		return nil
	}
	wanted := make(map[int]Device, len(devices))
	for _, d := range devices {
		wanted[d.Index] = d
	}
	for index, have := range l.devices {
		if w, ok := wanted[index]; !ok || w.variant() != have.variant() {
			have.detach()
			delete(l.devices, index)
		} else if w.Name != have.Name {
			have.Name, have.status.Name = w.Name, w.Name
		}
	}
	l.removeOrphans(wanted)
	for _, d := range devices {
		if have := l.devices[d.Index]; have == nil || have.status.Problem != "" {
			l.serve(d)
		}
	}
	return l.DeviceStatus()
}

// DeviceStatus tells how each device is served, by name.
func (l *Loader) DeviceStatus() []DeviceStatus {
	out := make([]DeviceStatus, 0, len(l.devices))
	for _, d := range l.devices {
		out = append(out, d.status)
	}
	slices.SortFunc(out, func(a, b DeviceStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// serve attaches what is missing at a device.
func (l *Loader) serve(d Device) {
	have := l.devices[d.Index]
	if have == nil {
		have = &wireDevice{Device: d}
		l.devices[d.Index] = have
	}
	have.status = DeviceStatus{Name: d.Name, Pod: d.Pod, XDP: "none"}
	programs, err := l.programs(d.variant())
	if err == nil {
		err = l.serveTC(have, programs)
	}
	if err == nil {
		err = l.serveXDP(have, programs)
	}
	if err != nil {
		have.status.Problem = err.Error()
	}
}

// programs loads the programs of a variant, once.
func (l *Loader) programs(v variant) (*wirePrograms, error) {
	if p := l.wire[v]; p != nil {
		return p, nil
	}
	p, err := l.loadWire(v, l.tables)
	if err == nil {
		l.wire[v] = p
	}
	return p, err
}

func (l *Loader) loadWire(v variant, set *maps.Set) (*wirePrograms, error) {
	tc, err := bpf.LoadTc()
	if err != nil {
		return nil, fmt.Errorf("read tc programs: %w", err)
	}
	loaded, err := l.loadVariant(tc, v, set)
	if err != nil {
		return nil, err
	}
	p := &wirePrograms{sides: [2]*ebpf.Program{loaded["portolan_tc_ingress"], loaded["portolan_tc_egress"]}}
	if v.pod || l.cfg.XDP == "" || l.cfg.XDP == XDPDisabled {
		return p, nil
	}
	xdp, err := bpf.LoadXdp()
	if err != nil {
		return nil, fmt.Errorf("read XDP program: %w", err)
	}
	if loaded, err = l.loadVariant(xdp, v, set); err != nil {
		p.close()
		return nil, err
	}
	p.xdp = loaded["portolan_xdp"]
	return p, nil
}

func (l *Loader) loadVariant(spec *ebpf.CollectionSpec, v variant, set *maps.Set) (map[string]*ebpf.Program, error) {
	header := uint32(0)
	if v.linkHeader {
		header = 14
	}
	if err := errors.Join(
		spec.Variables["link_header"].Set(header),
		spec.Variables["pod_device"].Set(v.pod),
		spec.Variables["masquerade_all"].Set(l.cfg.MasqueradeAll),
		spec.Variables["masquerade_near"].Set(l.cfg.MasqueradeAll && l.cfg.PodDevices),
		set.SetConstants(spec),
	); err != nil {
		return nil, fmt.Errorf("configure wire programs: %w", err)
	}
	return l.loadAgainst(spec, set)
}

// loadWires loads the variants that are in use, all or none.
func (l *Loader) loadWires(set *maps.Set) (map[variant]*wirePrograms, error) {
	fresh := make(map[variant]*wirePrograms, len(l.wire))
	for v := range l.wire {
		p, err := l.loadWire(v, set)
		if err != nil {
			closeWire(fresh)
			return nil, err
		}
		fresh[v] = p
	}
	return fresh, nil
}

func closeWire(wire map[variant]*wirePrograms) {
	for _, p := range wire {
		p.close()
	}
}

// switchDevices makes all devices run these programs, which use another set of
// tables.
func (l *Loader) switchDevices(fresh map[variant]*wirePrograms) error {
	var errs []error
	for _, d := range l.devices {
		p := fresh[d.variant()]
		for side, hook := range d.tc {
			if hook != nil && p != nil {
				errs = append(errs, hook.Update(p.sides[side]))
			}
		}
		if d.xdp != nil && p != nil && p.xdp != nil {
			errs = append(errs, d.xdp.Update(p.xdp))
		}
	}
	for v, p := range fresh {
		l.wire[v].close()
		l.wire[v] = p
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("switch devices to new programs: %w", err)
	}
	return nil
}

func (d *wireDevice) detach() {
	for _, hook := range d.tc {
		if hook != nil {
			hook.Detach()
			hook.Close()
		}
	}
	if d.xdp != nil {
		d.xdp.Unpin()
		d.xdp.Close()
	}
}

// close lets go of a device and leaves it served.
func (d *wireDevice) close() {
	for _, hook := range d.tc {
		if hook != nil {
			hook.Close()
		}
	}
	if d.xdp != nil {
		d.xdp.Close()
	}
}

// Pins of a device's links are named by its index: a name may move to another
// device, and a link belongs to one for life.
const (
	tcPin  = "tc_%d_%s"
	xdpPin = "xdp_%d"
)

var sideNames = [2]string{"ingress", "egress"}

// removeOrphans takes away what an earlier agent left on devices that are not
// served any more.
func (l *Loader) removeOrphans(wanted map[int]Device) {
	entries, err := os.ReadDir(linkDir(l.cfg.BPFFSRoot))
	if err != nil {
		return
	}
	for _, e := range entries {
		if index, ok := pinnedIndex(e.Name()); ok {
			if _, keep := wanted[index]; !keep {
				os.Remove(filepath.Join(linkDir(l.cfg.BPFFSRoot), e.Name()))
			}
		}
	}
	if !l.cleared {
		l.cleared = l.removeFilters(wanted)
	}
}

// pinnedIndex is the device of a pin's name; false for pins of other hooks.
func pinnedIndex(name string) (int, bool) {
	rest, ok := strings.CutPrefix(name, "xdp_")
	if !ok {
		if rest, ok = strings.CutPrefix(name, "tc_"); !ok {
			return 0, false
		}
		rest, _, _ = strings.Cut(rest, "_")
	}
	index, err := strconv.Atoi(rest)
	return index, err == nil
}

// serveTC attaches both sides by tcx where the kernel has it, else by filters
// of a clsact queueing discipline.
func (l *Loader) serveTC(d *wireDevice, p *wirePrograms) error {
	name, attach := "tcx", l.attachTCX
	if l.cfg.WithoutTCX || haveTCX() != nil {
		name, attach = "clsact", l.attachFilter
	}
	for side, program := range p.sides {
		if d.tc[side] != nil {
			continue
		}
		hook, err := attach(d, side, program)
		if err != nil {
			return fmt.Errorf("device %s: attach tc %s: %w", d.Name, sideNames[side], err)
		}
		d.tc[side] = hook
	}
	d.status.Hook = name
	return nil
}

// tcxLink is a pinned link.
type tcxLink struct{ link.Link }

func (t tcxLink) Detach() error { return t.Unpin() }

// attachTCX puts our program first on its side: before any that would drop or
// redirect what is addressed to a Service, and that see an endpoint's address.
// Programs after it run for all that we pass.
func (l *Loader) attachTCX(d *wireDevice, side int, program *ebpf.Program) (hookLink, error) {
	path := filepath.Join(linkDir(l.cfg.BPFFSRoot), fmt.Sprintf(tcPin, d.Index, sideNames[side]))
	pinned, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		info, infoErr := pinned.Info()
		if infoErr == nil && info.TCX() != nil && int(info.TCX().Ifindex) == d.Index && pinned.Update(program) == nil {
			return tcxLink{pinned}, nil
		}
		pinned.Unpin()
		pinned.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open pinned link: %w", err)
	}
	attach := [2]ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}[side]
	fresh, err := link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: program, Attach: attach, Anchor: link.Head()})
	if err != nil {
		return nil, err
	}
	if err := fresh.Pin(path); err != nil {
		fresh.Close()
		return nil, fmt.Errorf("pin link: %w", err)
	}
	return tcxLink{fresh}, nil
}

// serveXDP attaches the XDP program in the mode asked for, or in the best one.
// Where none is wanted, what an earlier agent left goes: it would decide first.
func (l *Loader) serveXDP(d *wireDevice, p *wirePrograms) error {
	if d.xdp != nil {
		return nil
	}
	path := filepath.Join(linkDir(l.cfg.BPFFSRoot), fmt.Sprintf(xdpPin, d.Index))
	if p.xdp == nil || !d.LinkHeader {
		l.adoptXDP(d, path, nil, nil)
		return nil
	}
	modes := map[XDPMode][]link.XDPAttachFlags{
		XDPNative:     {link.XDPDriverMode},
		XDPGeneric:    {link.XDPGenericMode},
		XDPBestEffort: {link.XDPDriverMode, link.XDPGenericMode},
	}[l.cfg.XDP]
	if adopted := l.adoptXDP(d, path, p.xdp, modes); adopted {
		return nil
	}
	var err error
	for _, mode := range modes {
		var fresh link.Link
		if fresh, err = link.AttachXDP(link.XDPOptions{Program: p.xdp, Interface: d.Index, Flags: mode}); err != nil {
			continue
		}
		if err := fresh.Pin(path); err != nil {
			fresh.Close()
			return fmt.Errorf("device %s: pin XDP link: %w", d.Name, err)
		}
		d.xdp, d.status.XDP = fresh, xdpName(mode)
		return nil
	}
	if other := foreignXDP(d.Index); other != "" {
		err = fmt.Errorf("%s is there already", other)
	}
	err = fmt.Errorf("device %s: no XDP in mode %s: %w; tc serves it", d.Name, l.cfg.XDP, err)
	if l.cfg.XDP == XDPBestEffort && foreignXDP(d.Index) == "" {
		return nil // asked for what can be had
	}
	return err
}

// adoptXDP takes over the link of an earlier agent if its mode is still wanted,
// else it detaches the link.
func (l *Loader) adoptXDP(d *wireDevice, path string, program *ebpf.Program, modes []link.XDPAttachFlags) bool {
	pinned, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false
	}
	info, err := pinned.Info()
	if err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == d.Index {
		for _, mode := range modes {
			if attachedMode(d.Index) == mode && pinned.Update(program) == nil {
				d.xdp, d.status.XDP = pinned, xdpName(mode)
				return true
			}
		}
	}
	pinned.Unpin()
	pinned.Close()
	return false
}

func xdpName(mode link.XDPAttachFlags) string {
	if mode == link.XDPDriverMode {
		return "native"
	}
	return "generic"
}

// attachedMode is the mode of the XDP program that a device has.
func attachedMode(index int) link.XDPAttachFlags {
	dev, err := netlink.LinkByIndex(index)
	if err != nil || dev.Attrs().Xdp == nil {
		return 0
	}
	switch dev.Attrs().Xdp.AttachMode {
	case 1: // XDP_ATTACHED_DRV
		return link.XDPDriverMode
	case 2: // XDP_ATTACHED_SKB
		return link.XDPGenericMode
	}
	return 0
}

// foreignXDP names the XDP program that a device has, if it has one.
func foreignXDP(index int) string {
	dev, err := netlink.LinkByIndex(index)
	if err != nil || dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached {
		return ""
	}
	id := dev.Attrs().Xdp.ProgId
	// Its name takes CAP_SYS_ADMIN to know.
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id)); err == nil {
		defer p.Close()
		if info, err := p.Info(); err == nil && info.Name != "" {
			return fmt.Sprintf("another XDP program, %s (id %d),", info.Name, id)
		}
	}
	return fmt.Sprintf("another XDP program (id %d)", id)
}
