// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

package loader

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

func TestMain(m *testing.M) {
	world.Main()
	os.Exit(m.Run())
}

var (
	published4 = netip.MustParseAddr("203.0.113.10")
	published6 = netip.MustParseAddr("2001:db8:1b::10")
)

// attachedTo is a loader that serves a node's sockets and uplink, with the two
// published addresses in its tables. f runs in the node's namespace.
func attachedTo(t *testing.T, cfg Config, f func(l *Loader, set *maps.Set, uplink int)) {
	t.Helper()
	w := world.NewT(t)
	node := world.Must(w.AddNode("here"))(t)
	cfg.BPFFSRoot, cfg.CgroupRoot = node.BPFFS(), node.CgroupRoot()
	err := node.Do(func() error {
		l, err := Open(cfg)
		if err != nil {
			return err
		}
		defer l.Close()
		set, err := maps.Create(maps.Sizes{})
		if err != nil {
			return err
		}
		defer set.Close()
		if err := l.Attach(set); err != nil {
			return err
		}
		publish(t, set)
		uplink, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		index := uplink.Attrs().Index
		for _, s := range l.SetDevices([]Device{{Index: index, Name: "eth0", LinkHeader: true}}) {
			if s.Problem != "" {
				return errors.New(s.Problem)
			}
		}
		f(l, set, index)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func publish(t *testing.T, set *maps.Set) {
	t.Helper()
	err := errors.Join(
		set.Frontends4.Put(maps.Frontend4Key(netip.AddrPortFrom(published4, 0), 0), maps.AddressPublished),
		set.Frontends6.Put(maps.Frontend6Key(netip.AddrPortFrom(published6, 0), 0), maps.AddressPublished),
	)
	if err != nil {
		t.Fatal(err)
	}
	setFilter(set, true)
}

// setFilter sets or clears the bits of the published addresses.
func setFilter(set *maps.Set, on bool) {
	for _, a := range []netip.Addr{published4, published6} {
		bit := maps.FilterBit(a, set.VIPFilter.Len()*64)
		word := set.VIPFilter.LoadWord(bit/64, 0) &^ (1 << (bit % 64))
		if on {
			word |= 1 << (bit % 64)
		}
		set.VIPFilter.StoreWord(bit/64, 0, word)
	}
}

// expect compares faults with the parts that their texts should have, in any
// order.
func expect(t *testing.T, what string, faults []Fault, want ...Fault) {
	t.Helper()
	if len(faults) != len(want) {
		t.Errorf("%s: faults are %v, want %d", what, faults, len(want))
		return
	}
	for _, w := range want {
		found := false
		for _, f := range faults {
			found = found || f.Family == w.Family && strings.Contains(f.Reason, w.Reason)
		}
		if !found {
			t.Errorf("%s: faults are %v, want one of family %d that says %q", what, faults, w.Family, w.Reason)
		}
	}
}

func TestASocketHookThatIsLostIsAFaultOfItsFamily(t *testing.T) {
	attachedTo(t, Config{}, func(l *Loader, _ *maps.Set, _ int) {
		expect(t, "everything attached", l.Faults(published(published4, published6)))
		if err := os.Remove(filepath.Join(linkDir(l.cfg.BPFFSRoot), "connect4")); err != nil {
			t.Fatal(err)
		}
		removed := Fault{4, "hook cgroup/connect4: no link is pinned"}
		expect(t, "pin removed", l.Faults(SelfTest{}), removed)
		if err := l.links["sendmsg6"].Detach(); err != nil {
			t.Fatal(err)
		}
		detached := Fault{6, "hook cgroup/sendmsg6: somebody detached it"}
		expect(t, "link detached", l.Faults(SelfTest{}), removed, detached)
		other := world.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet6Connect, License: "Apache-2.0",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		}))(t)
		defer other.Close()
		if err := l.links["connect6"].Update(other); err != nil {
			t.Fatal(err)
		}
		expect(t, "another program", l.Faults(SelfTest{}), removed, detached, Fault{6, "hook cgroup/connect6: program "})
	})
}

// ways are those in which packets are taken.
var ways = map[string]Config{"tcx": {}, "clsact": {WithoutTCX: true}, "xdp": {XDP: XDPGeneric}}

func TestAWireProgramThatIsLostIsAFault(t *testing.T) {
	for name, cfg := range ways {
		attachedTo(t, cfg, func(l *Loader, _ *maps.Set, uplink int) {
			expect(t, name+": everything attached", l.Faults(published(published4, published6)))
			d := l.devices[uplink]
			if tcx := !cfg.WithoutTCX && kernel.Has(t, kernel.TCX); tcx != (d.status.Hook == "tcx") {
				t.Errorf("%s: tc is attached by %s", name, d.status.Hook)
			}
			want := "device eth0: tc egress: somebody detached it"
			switch hook := d.tc[1].(type) {
			case tcxLink:
				if err := hook.Link.Detach(); err != nil {
					t.Fatal(err)
				}
			case filterLink:
				if err := hook.Detach(); err != nil {
					t.Fatal(err)
				}
			}
			expect(t, name+": egress detached", l.Faults(SelfTest{}), Fault{0, want})
			lost := func(hooks ...string) {
				t.Helper()
				if s := l.DeviceStatus(); len(s) != 1 || !slices.Equal(s[0].Lost, hooks) {
					t.Errorf("%s: status is %+v, want %v lost", name, s, hooks)
				}
			}
			lost("tc")
			if d.xdp == nil {
				return
			}
			if err := d.xdp.(link.Link).Detach(); err != nil {
				t.Fatal(err)
			}
			expect(t, name+": XDP detached", l.Faults(SelfTest{}), Fault{0, want}, Fault{0, "device eth0: XDP: somebody detached it"})
			lost("tc", "xdp")
		})
	}
}

func TestASelfTestFindsTablesThatDoNotTranslate(t *testing.T) {
	for name, cfg := range ways {
		attachedTo(t, cfg, func(l *Loader, set *maps.Set, _ int) {
			flows := func() int {
				n, err := set.Flows4.Entries()
				if err != nil {
					t.Fatal(err)
				}
				return len(n)
			}
			before := flows()
			expect(t, name+": tables are whole", l.Faults(published(published4, published6)))
			if flows() != before {
				t.Errorf("%s: the self-test wrote a flow", name)
			}
			setFilter(set, false)
			expect(t, name+": filter empty", l.Faults(published(published4, published6)),
				Fault{4, "vip_filter lacks the load balancer address 203.0.113.10"}, Fault{6, "vip_filter lacks the load balancer address 2001:db8:1b::10"})
			setFilter(set, true)
			if _, found := set.Frontends6.Remove(maps.Frontend6Key(netip.AddrPortFrom(published6, 0), 0)); !found {
				t.Fatal("the address has no entry")
			}
			expect(t, name+": address gone", l.Faults(published(published4, published6)), Fault{6, "the load balancer address 2001:db8:1b::10 is not among the frontends"})
			if err := set.Frontends6.Put(maps.Frontend6Key(netip.AddrPortFrom(published6, 0), 0), maps.AddressOurs); err != nil {
				t.Fatal(err)
			}
			expect(t, name+": more than published", l.Faults(published(published4, published6)))
			if cfg.XDP == "" {
				return
			}
			// A program that does nothing in the place of ours.
			idle := world.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
			}))(t)
			defer idle.Close()
			for _, p := range l.wire {
				p.xdp, idle = idle, p.xdp
				got := l.Faults(published(published4))
				p.xdp, idle = idle, p.xdp
				expect(t, "XDP does nothing", got, Fault{0, "device eth0: XDP: program "},
					Fault{4, "self-test of XDP: an echo request to the load balancer address 203.0.113.10 got verdict 2, not 3"})
			}
		})
	}
}

func published(addrs ...netip.Addr) SelfTest { return SelfTest{Published: addrs} }

func TestTheKernelsListOfSocketsIsRead(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:0000":                         "0.0.0.0:0",
		"B80D0120000000000000000001000000:0035": "[2001:db8::1]:53",
	} {
		if got, err := parseSocketAddress(text); err != nil || got.String() != want {
			t.Errorf("%s is read as %v, want %s (%v)", text, got, want, err)
		}
	}
	for _, text := range []string{"", "0100007F", "01007F:1F90", "xxxxxxxx:0001", "0100007F:1F900"} {
		if got, err := parseSocketAddress(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
	// The sockets are connected and nobody serves: nothing is sent.
	for _, text := range []string{"127.66.9.9:9", "[::1]:9"} {
		at := netip.MustParseAddrPort(text)
		if got, err := connectedTo(at); err != nil || got != at {
			t.Errorf("a socket connected to %v leads to %v, %v", at, got, err)
		}
	}
}
