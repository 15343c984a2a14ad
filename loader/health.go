// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/maps"
)

// Fault is something that keeps traffic from being translated.
type Fault struct {
	// Family is whose traffic it is, 4 or 6; 0 is that of both.
	Family int
	Reason string
}

// Faults looks whether what was attached still is, runs the programs it was
// attached with, and, for wire programs, whether they do their work on the
// tables: published are load balancer or external addresses that no node has,
// and an echo request to each, which is answered without any state, is run
// through them. It must follow the first Attach. It makes some thirty system
// calls.
func (l *Loader) Faults(published ...netip.Addr) []Fault {
	var out []Fault
	for _, hook := range hooks {
		if err := l.hookFault(hook); err != nil {
			name, _ := hookType(hook)
			out = append(out, Fault{int(hook[len(hook)-1] - '0'), fmt.Sprintf("hook %s: %v", name, err)})
		}
	}
	for _, d := range l.devices {
		if err := l.deviceFault(d); err != nil {
			out = append(out, Fault{0, fmt.Sprintf("device %s: %v", d.Name, err)})
		}
	}
	for v, programs := range l.wire {
		for _, addr := range published {
			if err := l.echoFault(v, programs, addr); err != nil {
				out = append(out, Fault{familyOf(addr), err.Error()})
			}
		}
	}
	return out
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
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

// deviceFault looks at what a device was given. What it could not be given is
// in its status.
func (l *Loader) deviceFault(d *wireDevice) error {
	programs := l.wire[d.variant()]
	if _, err := netlink.LinkByIndex(d.Index); err != nil || programs == nil {
		return nil // it has just gone, and will not be served any more
	}
	for side, hook := range d.tc {
		if hook == nil {
			continue
		}
		err := runsProgram(hook.running, programs.sides[side])
		if err != nil {
			return fmt.Errorf("tc %s: %w", sideNames[side], err)
		}
	}
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

func runsProgram(running func() (ebpf.ProgramID, error), program *ebpf.Program) error {
	have, err := running()
	if err != nil {
		return err
	}
	want, err := programID(program)
	if err != nil {
		return err
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

// Verdicts of a packet that is sent back where it came from.
const (
	tcRedirect = 7 // TC_ACT_REDIRECT
	xdpTx      = 3 // XDP_TX
)

// echoFault runs an echo request to a published address through the programs.
// Nobody sees it but them.
func (l *Loader) echoFault(v variant, programs *wirePrograms, addr netip.Addr) error {
	if !v.linkHeader {
		return nil // a test run makes Ethernet frames only
	}
	published, err := l.isPublished(addr)
	if err != nil {
		return err
	}
	if !published {
		return nil // it is more than that by now
	}
	for _, x := range []struct {
		hook    string
		program *ebpf.Program
		want    uint32
	}{{"tc ingress", programs.sides[0], tcRedirect}, {"XDP", programs.xdp, xdpTx}} {
		if x.program == nil {
			continue
		}
		frame := echoRequest(addr)
		got, err := x.program.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)})
		if err != nil {
			return fmt.Errorf("self-test of %s: run program: %w", x.hook, err)
		}
		if got != x.want {
			return fmt.Errorf("self-test of %s: an echo request to the load balancer address %s got verdict %d, not %d: the program does not find it in its tables; restart the agent", x.hook, addr, got, x.want)
		}
	}
	return nil
}

// isPublished tells whether the tables say of an address that it is published
// and nothing else.
func (l *Loader) isPublished(addr netip.Addr) (bool, error) {
	var owner uint32
	var found bool
	var err error
	at := netip.AddrPortFrom(addr, 0)
	if addr.Is4() {
		owner, found, err = l.tables.Frontends4.Get(maps.Frontend4Key(at, 0))
	} else {
		owner, found, err = l.tables.Frontends6.Get(maps.Frontend6Key(at, 0))
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("self-test: read frontends: %w", err)
	case !found:
		return false, fmt.Errorf("self-test: the load balancer address %s is not among the frontends; restart the agent to have them written anew", addr)
	}
	// Echo requests are answered without a look at the filter.
	bit := maps.FilterBit(addr, l.tables.VIPFilter.Len()*64)
	if l.tables.VIPFilter.LoadWord(bit/64, 0)&(1<<(bit%64)) == 0 {
		return false, fmt.Errorf("self-test: vip_filter lacks the load balancer address %s; restart the agent to have it written anew", addr)
	}
	return owner == maps.AddressPublished, nil
}

// echoRequest is a frame for the programs: from an address of a documentation
// block, to MAC address zero, which is the loopback device's that a test run
// pretends to be.
func echoRequest(to netip.Addr) []byte {
	frame := make([]byte, 12, 14+40+16)
	icmp := []byte{8, 0, 0, 0, 0x70, 0x6f, 0, 1, 'p', 'o', 'r', 't', 'o', 'l', 'a', 'n'}
	if to.Is4() {
		from := netip.AddrFrom4([4]byte{192, 0, 2, 1}).As4()
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
		ip := []byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 0, 0x40, 0, 64, unix.IPPROTO_ICMP, 0, 0}
		ip = append(append(ip, from[:]...), to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))
		binary.BigEndian.PutUint16(icmp[2:], checksum(0, icmp))
		return append(append(frame, ip...), icmp...)
	}
	icmp[0] = 128
	from := netip.MustParseAddr("2001:db8::1").As16()
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
	ip := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 64}
	ip = append(append(ip, from[:]...), to.AsSlice()...)
	pseudo := uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo, append(ip[8:40:40], icmp...)))
	return append(append(frame, ip...), icmp...)
}

// checksum is the Internet checksum of an even number of bytes.
func checksum(sum uint32, data []byte) uint16 {
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
