// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

// newCounter is somebody else's program for the length of the test.
func newCounter(t *testing.T, kind ebpf.ProgramType, verdict int32) *world.Counter {
	t.Helper()
	c := world.Must(world.NewCounter(kind, ebpf.AttachNone, verdict))(t)
	t.Cleanup(func() { c.Close() })
	return c
}

// served wants every way of reaching the Service to work.
func (s *stage) served() {
	s.t.Helper()
	for name, addr := range s.frontends() {
		for _, proto := range []string{"tcp", "udp"} {
			report := world.Must(s.client.DialMany(proto, addr, 10))(s.t)
			if report.Failed > 0 {
				s.t.Errorf("%s %s: %d failed, the first by %+v", name, proto, report.Failed, report.Failures)
			}
		}
	}
}

// Verdicts of tc programs.
const (
	next   = -1 // TC_ACT_UNSPEC, TCX_NEXT
	accept = 0  // TC_ACT_OK, TCX_PASS: nobody behind is asked
)

// unload takes everything of ours off a node.
func (s *stage) unload(n *dataplane) {
	s.t.Helper()
	n.loader.Close()
	if err := n.Do(func() error { _, err := loader.Cleanup(n.BPFFS(), false); return err }); err != nil {
		s.t.Fatal(err)
	}
}

// called wants that all neighbours saw packets.
func called(t *testing.T, counters map[string]*world.Counter) {
	t.Helper()
	for name, c := range counters {
		if world.Must(c.Count())(t) == 0 {
			t.Errorf("the neighbour at %s is not called", name)
		}
	}
}

// Neighbours that were there before the agent, and such as came later and went
// before and after ours, are called, and stay when we go.
func TestTCXProgramsOfOthersAreCalledWhereverTheyAre(t *testing.T) {
	t.Parallel()
	kernel.Need(t, kernel.TCX)
	s := newStage(t, modes[0])
	s.serve(webService(), s.near[0], s.far[0])
	counters, links := map[string]*world.Counter{}, map[string]link.Link{}
	attach := func(place string, anchor link.Anchor) {
		s.eth0(func(dev netlink.Link) error {
			for name, side := range map[string]ebpf.AttachType{"ingress": ebpf.AttachTCXIngress, "egress": ebpf.AttachTCXEgress} {
				c := newCounter(t, ebpf.SchedCLS, next)
				l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: c.Program, Attach: side, Anchor: anchor})
				if err != nil {
					return err
				}
				t.Cleanup(func() { l.Close() })
				counters[name+", "+place], links[name+", "+place] = c, l
			}
			return nil
		})
	}
	const first = "there first"
	s.unload(s.here)
	attach(first, link.Head())
	s.run(s.here, modes[0])
	attach("before ours", link.Head())
	attach("after ours", link.Tail())
	s.served()
	called(t, counters)

	final := newCounter(t, ebpf.SchedCLS, accept)
	for _, side := range []string{"ingress, ", "egress, "} {
		if err := links[side+first].Update(final.Program); err != nil {
			t.Fatal(err)
		}
	}
	s.served() // ours is before who was there first
	s.unload(s.here)
	for name, l := range links {
		if info, err := l.Info(); err != nil || info.TCX().Ifindex == 0 {
			t.Errorf("after cleanup the link of the neighbour at %s is %+v, %v", name, info, err)
		}
	}
}

// The same with filters: of our own priority before the agent starts, of a
// later one afterwards.
func TestFiltersOfOthersAreCalledWhereverTheyAre(t *testing.T) {
	t.Parallel()
	s := newStage(t, modes[1])
	s.serve(webService(), s.near[0], s.far[0])
	sides := map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS}
	put := func(dev netlink.Link, parent uint32, priority uint16, c *world.Counter) error {
		return netlink.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: dev.Attrs().Index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority},
			Fd:          c.Program.FD(), Name: "neighbour", DirectAction: true,
		})
	}
	counters := map[string]*world.Counter{}
	attach := func(place string, priority uint16) {
		s.eth0(func(dev netlink.Link) error {
			for name, parent := range sides {
				c := newCounter(t, ebpf.SchedCLS, next)
				if err := put(dev, parent, priority, c); err != nil {
					return err
				}
				counters[name+", "+place] = c
			}
			return nil
		})
	}
	s.unload(s.here) // which leaves clsact
	attach("there first", 1)
	s.run(s.here, modes[1])
	attach("after ours", 2)
	s.served()
	called(t, counters)

	final := newCounter(t, ebpf.SchedCLS, accept)
	s.eth0(func(dev netlink.Link) error {
		return errors.Join(put(dev, sides["ingress"], 1, final), put(dev, sides["egress"], 1, final))
	})
	s.served() // ours is before who was there first
	if n := s.neighbours(); n != 4 {
		t.Fatalf("%d filters of the neighbours are found, want 4", n)
	}
	s.unload(s.here)
	if n := s.neighbours(); n != 4 {
		t.Errorf("after cleanup the neighbours have %d filters, had 4", n)
	}
}

// neighbours counts the filters of others.
func (s *stage) neighbours() (n int) {
	s.t.Helper()
	s.eth0(func(dev netlink.Link) error {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			list, err := netlink.FilterList(dev, parent)
			if err != nil {
				return err
			}
			for _, f := range list {
				if b, ok := f.(*netlink.BpfFilter); ok && b.Name == "neighbour" {
					n++
				}
			}
		}
		return nil
	})
	return n
}

// A device has one XDP program: who comes after ours is refused by the kernel,
// by link and without, and ours goes on.
func TestAnXDPProgramAfterOursIsRefused(t *testing.T) {
	for _, m := range some(t, modes[2:]...) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m)
			s.serve(webService(), s.near[0], s.far[0])
			other := newCounter(t, ebpf.XDP, 2) // XDP_PASS
			s.eth0(func(dev netlink.Link) error {
				for name, flag := range map[string]link.XDPAttachFlags{"generic": link.XDPGenericMode, "native": link.XDPDriverMode} {
					l, err := link.AttachXDP(link.XDPOptions{Program: other.Program, Interface: dev.Attrs().Index, Flags: flag})
					if err == nil {
						l.Close()
						t.Errorf("a link in %s mode is not refused", name)
					}
					if err := netlink.LinkSetXdpFdWithFlags(dev, other.Program.FD(), int(flag)); err == nil {
						t.Errorf("a program in %s mode is not refused", name)
					}
				}
				return nil
			})
			for _, f := range s.here.loader.Faults(loader.SelfTest{}) {
				t.Errorf("afterwards: %s", f.Reason)
			}
			s.served()
		})
	}
}

// eth0 does something with the node's outward device.
func (s *stage) eth0(f func(netlink.Link) error) {
	s.t.Helper()
	err := s.here.Do(func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return f(dev)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// A device that has an XDP program keeps it; it is named, and tc serves.
func TestADeviceWithAnotherXDPProgramIsServedByTC(t *testing.T) {
	s := newStage(t, mode{"no xdp", loader.XDPDisabled, true})
	other := newCounter(t, ebpf.XDP, 2) // XDP_PASS
	s.eth0(func(dev netlink.Link) error {
		l, err := link.AttachXDP(link.XDPOptions{Program: other.Program, Interface: dev.Attrs().Index, Flags: link.XDPGenericMode})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	for _, want := range []loader.XDPMode{loader.XDPBestEffort, loader.XDPGeneric, loader.XDPNative} {
		s.here.loader.Close()
		s.run(s.here, mode{xdp: want, tcx: true})
		if d := s.here.devices[0]; d.XDP != "none" || !strings.Contains(d.Problem, "another XDP program, neighbour") || d.Hook == "" {
			t.Errorf("--xdp %s: %+v", want, d)
		}
	}
	s.serve(webService(), s.near[0], s.far[0])
	s.served()
	if world.Must(other.Count())(t) == 0 {
		t.Error("the other program is not called any more")
	}
}
