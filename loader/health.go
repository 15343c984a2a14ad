// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Fault is something that keeps traffic from being translated.
type Fault struct {
	// Family is whose traffic it is, 4 or 6; 0 is that of both.
	Family int
	Reason string
}

// Faults looks whether what was attached still is, runs the programs it was
// attached with, and whether these do their work on the tables. Before the first
// Attach that succeeds there are none. It makes some forty system calls.
func (l *Loader) Faults(test SelfTest) []Fault {
	if l.tables == nil {
		return nil
	}
	var out []Fault
	for _, hook := range hooks {
		if err := l.hookFault(hook); err != nil {
			name, _ := hookType(hook)
			out = append(out, Fault{int(hook[len(hook)-1] - '0'), fmt.Sprintf("hook %s: %v", name, err)})
		}
	}
	for _, d := range l.devices {
		d.status.Lost = nil
		for _, hook := range l.lost(d) {
			d.status.Lost = append(d.status.Lost, hook.name)
			out = append(out, Fault{0, fmt.Sprintf("device %s: %v", d.Name, hook.err)})
		}
	}
	return append(out, l.run(test)...)
}

var (
	errNotPinned = errors.New("no link is pinned; restart the agent to attach it anew")
	errDetached  = errors.New("somebody detached it; restart the agent to attach it anew")
)

// foreign tells that another program runs where ours should.
func foreign(have, want ebpf.ProgramID) error {
	if have == want {
		return nil
	}
	return fmt.Errorf("program %d runs there, not ours (%d); restart the agent to attach it anew", have, want)
}

func (l *Loader) hookFault(hook string) error {
	pinned, err := link.LoadPinnedLink(filepath.Join(linkDir(l.cfg.BPFFSRoot), hook), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return errNotPinned
	}
	if err != nil {
		return err
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	if cgroup := info.Cgroup(); cgroup == nil || cgroup.CgroupId != l.cgroup {
		return errDetached
	}
	return foreign(info.Program, l.attached[hook])
}

// lostHook is a hook of a device, "tc" or "xdp", and what became of it.
type lostHook struct {
	name string
	err  error
}

// lost looks at what a device was given. What it could not be given is in its
// status.
func (l *Loader) lost(d *wireDevice) []lostHook {
	programs := l.wire[d.variant()]
	if _, err := netlink.LinkByIndex(d.Index); err != nil || programs == nil {
		return nil // it has just gone, and will not be served any more
	}
	var out []lostHook
	if err := d.tcFault(programs); err != nil {
		out = append(out, lostHook{"tc", err})
	}
	if err := d.xdpFault(programs); err != nil {
		out = append(out, lostHook{"xdp", err})
	}
	return out
}

func (d *wireDevice) tcFault(programs *wirePrograms) error {
	for side, hook := range d.tc {
		if hook == nil {
			continue
		}
		err := runsProgram(hook.running, programs.sides[side])
		if err != nil {
			return fmt.Errorf("tc %s: %w", sideNames[side], err)
		}
	}
	return nil
}

func (d *wireDevice) xdpFault(programs *wirePrograms) error {
	if d.xdp == nil || programs.xdp == nil {
		return nil
	}
	running := func() (ebpf.ProgramID, error) {
		info, err := d.xdp.Info()
		if err == nil && (info.XDP() == nil || info.XDP().Ifindex == 0) {
			err = errDetached
		}
		if err != nil {
			return 0, err
		}
		return info.Program, nil
	}
	if err := runsProgram(running, programs.xdp); err != nil {
		return fmt.Errorf("XDP: %w", err)
	}
	return nil
}

// runsProgram compares what runs with what should. What cannot be read for
// another reason than being gone tells nothing: dumps are interrupted.
func runsProgram(running func() (ebpf.ProgramID, error), program *ebpf.Program) error {
	have, err := running()
	if errors.Is(err, errDetached) {
		return err
	}
	want, wantErr := programID(program)
	if err != nil || wantErr != nil {
		return nil
	}
	return foreign(have, want)
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// running is the program of the link, as long as it is on its device.
func (t tcxLink) running() (ebpf.ProgramID, error) {
	info, err := t.Info()
	switch {
	case err != nil:
		return 0, fmt.Errorf("read link: %w", err)
	case info.TCX() == nil || info.TCX().Ifindex == 0:
		return 0, errDetached
	}
	return info.Program, nil
}

// running is the program of our filter.
func (f filterLink) running() (ebpf.ProgramID, error) {
	dev, err := netlink.LinkByIndex(f.index)
	if err != nil {
		return 0, fmt.Errorf("find device: %w", err)
	}
	filters, err := netlink.FilterList(dev, f.parent())
	if err != nil {
		return 0, fmt.Errorf("list filters: %w", err)
	}
	for _, have := range filters {
		if ours, ok := have.(*netlink.BpfFilter); ok && ours.Attrs().Handle == filterHandle && ours.Attrs().Priority == filterPriority {
			return ebpf.ProgramID(ours.Id), nil
		}
	}
	return 0, errDetached
}
