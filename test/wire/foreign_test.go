// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"net"
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

const next = -1 // TC_ACT_UNSPEC, TCX_NEXT

func TestProgramsBeforeAndAfterOursAreStillCalled(t *testing.T) {
	t.Run("tcx", func(t *testing.T) {
		t.Parallel()
		kernel.Need(t, kernel.TCX)
		s := newStage(t, modes[0])
		s.serve(webService(), s.near[0], s.far[0])
		counters := map[string]*world.Counter{}
		var links []link.Link
		err := s.here.Do(func() error {
			dev, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			for name, side := range map[string]ebpf.AttachType{"ingress": ebpf.AttachTCXIngress, "egress": ebpf.AttachTCXEgress} {
				for place, anchor := range map[string]link.Anchor{"before": link.Head(), "after": link.Tail()} {
					c := newCounter(t, ebpf.SchedCLS, next)
					l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: c.Program, Attach: side, Anchor: anchor})
					if err != nil {
						return err
					}
					t.Cleanup(func() { l.Close() })
					counters[name+" "+place] = c
					links = append(links, l)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.served()
		for name, c := range counters {
			if world.Must(c.Count())(t) == 0 {
				t.Errorf("the program at %s ours was not called", name)
			}
		}
		s.here.loader.Close()
		if err := s.here.Do(func() error { _, err := loader.Cleanup(s.here.BPFFS(), false); return err }); err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if info, err := l.Info(); err != nil || info.TCX().Ifindex == 0 {
				t.Errorf("after cleanup a neighbour's link is %+v, %v", info, err)
			}
		}
	})
	t.Run("clsact", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, modes[1])
		s.serve(webService(), s.near[0], s.far[0])
		counters := map[string]*world.Counter{}
		filters := func() (n int) {
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
		s.eth0(func(dev netlink.Link) error {
			for name, parent := range map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS} {
				c := newCounter(t, ebpf.SchedCLS, next)
				counters[name] = c
				err := netlink.FilterAdd(&netlink.BpfFilter{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: dev.Attrs().Index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 2},
					Fd:          c.Program.FD(), Name: "neighbour", DirectAction: true,
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		s.served()
		for name, c := range counters {
			if world.Must(c.Count())(t) == 0 {
				t.Errorf("the filter after ours at %s was not called", name)
			}
		}
		if n := filters(); n != 2 {
			t.Fatalf("%d filters of the neighbour are found, want 2", n)
		}
		s.here.loader.Close()
		if err := s.here.Do(func() error { _, err := loader.Cleanup(s.here.BPFFS(), false); return err }); err != nil {
			t.Fatal(err)
		}
		if n := filters(); n != 2 {
			t.Errorf("after cleanup the neighbour has %d filters, had 2", n)
		}
	})
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
