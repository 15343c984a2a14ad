// SPDX-License-Identifier: Apache-2.0

// Needs root and Linux 6.1.

package model

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// lab is a node: a namespace with devices, routes and neighbours, the tables as
// the compiler and the reconciler write them, and the programs.
type lab struct {
	cluster    *cluster
	compiler   *compile.Compiler
	reconciler *reconcile.Reconciler
	set        *maps.Set
	programs   [3]*ebpf.Program
	open       []*ebpf.Collection
	context    [192]byte
	out        []byte
	dropped    bool                   // the last packet
	passed     bool                   // the last packet, as it came
	fault      fault                  // that the programs are to have
	saw        func(Arrival, Outcome) // what became of each packet; may be nil
	cpus       int
	rate       uint32            // of new flows, above which nothing is written
	errorRate  uint32            // ICMP errors of a CPU in 16.8 ms
	before     [SCTPPort + 1]int // counted, up to the last packet
}

func newLab(t *testing.T) *lab {
	t.Helper()
	world.RequireRoot(t)
	l := &lab{cluster: newCluster(), rate: 1 << 31, errorRate: 1 << 31, out: make([]byte, 1<<14)}
	l.cpus = world.Must(ebpf.PossibleCPU())(t)
	enterNewNamespace(t)
	if err := l.connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range l.open {
			c.Close()
		}
	})
	barrier := world.Must(maps.NewBarrier())(t)
	t.Cleanup(barrier.Close)
	n := reconcile.Node{NodePortAddrs: map[netip.Addr]bool{}, InsideCIDRs: l.cluster.Inside,
		Masquerade: reconcile.PortRange{First: l.cluster.FirstPort, Last: l.cluster.LastPort}}
	for _, a := range l.cluster.NodePortAddrs {
		n.NodePortAddrs[a] = false
	}
	for _, d := range l.cluster.Devices {
		own := reconcile.Device{Index: d.Index, XDPTarget: d.XDPTarget, Inward: d.Inward}
		for _, r := range l.cluster.Routes { // for kernels that do not tell
			switch {
			case r.Device != d || !r.OnlyAddress:
			case r.Masquerade.Is4():
				own.Source4 = r.Masquerade
			default:
				own.Source6 = r.Masquerade
			}
		}
		n.Devices = append(n.Devices, own)
	}
	l.compiler = compile.New(compile.Config{Node: service.Node{Name: "here"}, MaglevSize: 251})
	l.reconciler = world.Must(reconcile.New(reconcile.Config{Attach: l.load, Wait: barrier.Wait, Node: n}))(t)
	if err := l.apply(); err != nil {
		t.Fatal(err)
	}
	return l
}

// enterNewNamespace moves the test into a namespace of its own, until its end.
func enterNewNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	home := world.Must(netns.Get())(t)
	own := world.Must(netns.New())(t)
	t.Cleanup(func() {
		if err := errors.Join(netns.Set(home), home.Close(), own.Close()); err != nil {
			t.Error(err)
			return // the thread stays locked, and ends with the test
		}
		runtime.UnlockOSThread()
	})
}

// connect makes the devices and what leads out by them.
func (l *lab) connect() error {
	for _, s := range [][2]string{
		{"ipv6/conf/all/disable_ipv6", "0"}, {"ipv6/conf/default/disable_ipv6", "0"}, {"ipv6/conf/lo/disable_ipv6", "0"},
		{"ipv6/conf/all/accept_dad", "0"}, {"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/default/accept_ra", "0"},
		{"ipv4/ip_forward", "1"}, {"ipv6/conf/all/forwarding", "1"}, {"ipv6/conf/default/forwarding", "1"},
	} {
		if err := world.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for i, d := range l.cluster.Devices {
		name := fmt.Sprintf("out%d", i)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		for _, end := range []string{name, name + "p"} {
			dev, err := netlink.LinkByName(end)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(dev); err != nil {
				return err
			}
			if end == name {
				d.Index = uint32(dev.Attrs().Index)
				copy(d.MAC[:], dev.Attrs().HardwareAddr)
			}
		}
	}
	for i := range l.cluster.Routes {
		if err := addRoute(&l.cluster.Routes[i]); err != nil {
			return fmt.Errorf("route %+v: %w", l.cluster.Routes[i], err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addRoute(r *Route) error {
	if r.Device == nil {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(r.To), Type: unix.RTN_UNREACHABLE})
	}
	dev, err := netlink.LinkByIndex(int(r.Device.Index))
	if err != nil {
		return err
	}
	if r.OnlyAddress {
		return nil // comes with the network
	}
	if !r.Gateway.IsValid() {
		// Our address is in the network, and so are neighbours whose MAC is known.
		own := &net.IPNet{IP: r.Masquerade.AsSlice(), Mask: net.CIDRMask(r.To.Bits(), r.To.Addr().BitLen())}
		if err := netlink.AddrAdd(dev, &netlink.Addr{IPNet: own}); err != nil {
			return err
		}
		for a := r.To.Addr().Next(); !r.Known.Less(a); a = a.Next() {
			if a != r.Masquerade {
				if err := neighbour(r, a); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if !r.Unresolved {
		if err := neighbour(r, r.Gateway); err != nil {
			return err
		}
	}
	// The kernel forwards by a route's MTU only if it is locked.
	return netlink.RouteAdd(&netlink.Route{Dst: ipNet(r.To), Gw: r.Gateway.AsSlice(), LinkIndex: int(r.Device.Index), MTU: r.MTU, MTULock: true})
}

func neighbour(r *Route, a netip.Addr) error {
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: int(r.Device.Index), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: r.GatewayMAC[:],
	})
}

// load gives the programs a set of tables; called again when tables grow.
func (l *lab) load(set *maps.Set) error {
	l.set = set
	for _, of := range []struct {
		load func() (*ebpf.CollectionSpec, error)
		name string
		hook Hook
	}{{bpf.LoadXdp, "portolan_xdp", XDP}, {bpf.LoadTc, "portolan_tc_ingress", Ingress}, {bpf.LoadTc, "portolan_tc_egress", Egress}} {
		spec, err := of.load()
		if err != nil {
			return err
		}
		err = errors.Join(
			set.SetConstants(spec),
			spec.Variables["new_flow_rate"].Set(l.rate),
			spec.Variables["icmp_error_rate"].Set(l.errorRate),
			spec.Variables["masquerade_all"].Set(l.cluster.MasqueradeAll),
			spec.Variables["masquerade_near"].Set(l.cluster.MasqueradeAll),
		)
		if err != nil {
			return err
		}
		replacements := map[string]*ebpf.Map{}
		for name, m := range set.All() {
			if declared := spec.Maps[name]; declared != nil {
				declared.MaxEntries = m.MaxEntries()
				replacements[name] = m
			}
		}
		c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
		if err != nil {
			return err
		}
		l.open = append(l.open, c)
		l.programs[of.hook] = c.Programs[of.name]
	}
	return nil
}

// run gives a frame to a program.
func (l *lab) run(a Arrival) (Outcome, error) {
	clear(l.context[:])
	if a.Hook == XDP {
		binary.NativeEndian.PutUint32(l.context[4:], uint32(len(a.Frame))) // data_end
		binary.NativeEndian.PutUint32(l.context[12:], a.Device.Index)
	} else {
		binary.NativeEndian.PutUint32(l.context[40:], a.Device.Index)
		binary.NativeEndian.PutUint32(l.context[176:], uint32(a.Segment)) // gso_size
	}
	opts := ebpf.RunOptions{Data: a.Frame, DataOut: l.out, Context: l.context[:]}
	if a.Hook == XDP {
		opts.Context = l.context[:24]
	}
	code, err := l.programs[a.Hook].Run(&opts)
	if err != nil {
		return Outcome{}, err
	}
	o := Outcome{Frame: append([]byte(nil), opts.DataOut...)}
	switch {
	case a.Hook == XDP && code == 2, a.Hook != XDP && int32(code) == -1:
		o.Verdict = Pass
	case a.Hook == XDP && code == 1, a.Hook != XDP && code == 2:
		o.Verdict = Drop
	case a.Hook == XDP && code == 3: // XDP_TX: back, or on by the same device
		o.Verdict, o.Device = Send, a.Device
	case a.Hook == XDP && code == 4, a.Hook != XDP && code == 7:
		o.Verdict = Send
	default:
		return o, fmt.Errorf("verdict %d of %s", code, a.Hook)
	}
	l.dropped, l.passed = o.Verdict == Drop, o.Verdict == Pass && bytes.Equal(o.Frame, a.Frame)
	return o, nil
}

// chosen tells what the programs made of the last packet.
func (l *lab) chosen(t Tuple) Choice {
	to, found := l.remembered(t)
	c := Choice{To: to, Found: found, Dropped: l.dropped, Passed: l.passed}
	if l.fault.choice != nil {
		l.fault.choice(t, &c)
	}
	return c
}

// remembered reads what the programs wrote down for a first packet.
func (l *lab) remembered(t Tuple) (to Tuple, found bool) {
	if t.Src.Addr().Is4() {
		key := flowKey4(t)
		var b bpf.LbNewcomers4
		if err := l.set.Map(maps.Newcomers4).Lookup(bucket(words(key)), &b); err != nil {
			return to, false
		}
		for i := range b.Way {
			if f := &b.Way[i].Flow; b.Way[i].Key == key && f.Flow.Action != 0 {
				return tupleOf(maps.FromAddr4(f.Src), maps.FromAddr4(f.Dst), &f.Flow, t.Proto), true
			}
		}
		return to, false
	}
	key := flowKey6(t)
	var b bpf.LbNewcomers6
	if err := l.set.Map(maps.Newcomers6).Lookup(bucket(words(key)), &b); err != nil {
		return to, false
	}
	for i := range b.Way {
		if f := &b.Way[i].Flow; b.Way[i].Key == key && f.Flow.Action != 0 {
			return tupleOf(maps.FromAddr16(f.Src), maps.FromAddr16(f.Dst), &f.Flow, t.Proto), true
		}
	}
	return to, false
}

func tupleOf(src, dst netip.Addr, f *bpf.LbFlow, proto uint8) Tuple {
	return Tuple{netip.AddrPortFrom(src, maps.Port16(f.Sport)), netip.AddrPortFrom(dst, maps.Port16(f.Dport)), proto}
}

func flowKey4(t Tuple) bpf.LbFlow4Key {
	return bpf.LbFlow4Key{Src: maps.Addr4(t.Src.Addr()), Dst: maps.Addr4(t.Dst.Addr()),
		Sport: maps.Port16(t.Src.Port()), Dport: maps.Port16(t.Dst.Port()), Proto: t.Proto}
}

func flowKey6(t Tuple) bpf.LbFlow6Key {
	return bpf.LbFlow6Key{Src: maps.Addr16(t.Src.Addr()), Dst: maps.Addr16(t.Dst.Addr()),
		Sport: maps.Port16(t.Src.Port()), Dport: maps.Port16(t.Dst.Port()), Proto: t.Proto}
}

func words(key any) []uint64 {
	b, err := binary.Append(nil, binary.NativeEndian, key)
	if err != nil {
		panic(err)
	}
	w := make([]uint64, len(b)/8)
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return w
}

// bucket is where the programs keep a newcomer: bucket_of in newcomer.h. It is
// the one thing that is the same here, because it only finds what they chose.
func bucket(w []uint64) uint32 {
	mix := []uint64{0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53, 0x9e3779b97f4a7c15, 0xff51afd7ed558ccd}
	h := w[0] * 0x9e3779b97f4a7c15
	for i, word := range w[1:] {
		h = (h ^ h>>32 ^ word) * mix[i]
	}
	return uint32(h>>32) & (16384 - 1)
}

// wipe makes the programs forget every packet.
func (l *lab) wipe() error {
	clear4, clear6 := make([]bpf.LbNewcomers4, 16384), make([]bpf.LbNewcomers6, 16384)
	index := make([]uint32, 16384)
	for i := range index {
		index[i] = uint32(i)
	}
	_, err4 := l.set.Map(maps.Newcomers4).BatchUpdate(index, clear4, nil)
	_, err6 := l.set.Map(maps.Newcomers6).BatchUpdate(index, clear6, nil)
	err := errors.Join(err4, err6)
	for _, name := range []string{maps.Flows4, maps.Flows6, maps.Fragments, maps.Affinity} {
		err = errors.Join(err, empty(l.set.Map(name)))
	}
	return err
}

func empty(m *ebpf.Map) error {
	var keys [][]byte
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	all := m.Iterate()
	for all.Next(&key, &value) {
		keys = append(keys, append([]byte(nil), key...))
	}
	err := all.Err()
	for _, k := range keys {
		err = errors.Join(err, m.Delete(k))
	}
	return err
}
