// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/paths"
)

// Flags of the TCP header.
const (
	syn = 2
	ack = 16
)

// many is the number of flows that do not fit into a cache.
const many = 100_000

// wire measures what the XDP and tc programs take for a packet: the kernel's
// own figure of repeated test runs, less what writing the packet takes, so that
// the cost of calling an empty program is in it.
func wire(*bed) ([]figure, error) {
	small, err := wireFigures(xdp, 1_000)
	if err != nil {
		return nil, err
	}
	large, err := wireFigures(xdp, 100_000)
	if err != nil {
		return nil, err
	}
	tcs, err := wireFigures(tc, 1_000)
	if err != nil {
		return nil, err
	}
	var out []figure
	byName := map[string]figure{}
	for i, f := range small {
		out = append(out, f)
		byName[f.Name] = f
		if f.Name == "XDP IPv4 established, one flow" || f.Name == "XDP IPv4 new flow" {
			ratio := large[i].Value / f.Value
			out = append(out, figure{f.Name + ", 100,000 Services", ratio, "x", "1,000 Services", f.Value, 1.3, ratio <= 1.3})
		}
	}
	// tc may take 40 ns more than XDP did just now.
	for _, f := range tcs {
		x := byName[xdp.name+strings.TrimPrefix(f.Name, tc.name)]
		f.Baseline, f.BaselineValue, f.Bar = "XDP, ns", x.Value, x.Value+40
		f.Pass = f.Value <= f.Bar
		out = append(out, f)
	}
	return out, nil
}

// hook is where programs run, and what they end with.
type hook struct {
	name         string
	load         func() (*ebpf.CollectionSpec, error)
	passed, sent uint32
}

var (
	xdp = hook{"XDP", bpf.LoadBench, 2, 3}
	tc  = hook{"tc", bpf.LoadBenchTc, 0, 4}
)

// lane is a family's programs and packets.
type lane struct {
	hook         hook
	name         string // "IPv4"
	v6           bool
	run, floor   *ebpf.Program
	empty        *ebpf.Program
	packet       *ebpf.Map
	vip          netip.Addr
	overhead     float64 // of floor over empty, ns
	flows, other *ebpf.Map
	steps        map[string]*ebpf.Program // to be measured one by one; nil: not
}

func wireFigures(h hook, services int) ([]figure, error) {
	d, err := wireTables(services)
	if err != nil {
		return nil, err
	}
	defer d.barrier.Close()
	defer d.reconciler.Tables().Close()
	var out []figure
	for _, flood := range []bool{false, true} {
		programs, err := wirePrograms(h, d.reconciler.Tables(), flood)
		if err != nil {
			return nil, err
		}
		for _, l := range lanes(h, programs, d.reconciler.Tables()) {
			some, err := l.measure(flood)
			if err != nil {
				programs.Close()
				return nil, err
			}
			out = append(out, some...)
		}
		programs.Close()
	}
	return out, nil
}

// wireTables hold a Service that is measured, with 40 endpoints on other nodes,
// among others.
func wireTables(others int) (*dataplane, error) {
	d, err := newDataplane(nil)
	if err != nil {
		return nil, err
	}
	if err := d.apply(objects(0, others, 10, 100)); err != nil {
		return nil, err
	}
	name := service.Name{Namespace: "bench", Name: "wire"}
	u := compile.Update{
		Services: map[service.Name]*service.Service{name: {
			Name: name, Type: service.LoadBalancer,
			ClusterIPs:      []netip.Addr{netip.MustParseAddr("172.20.0.1"), netip.MustParseAddr("fd00:172::1")},
			LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
			Ports:           []service.Port{{Protocol: service.TCP, Port: 80}},
		}},
		Slices: map[service.Name]*service.EndpointSlice{},
	}
	for _, family := range []service.Family{service.IPv4, service.IPv6} {
		s := &service.EndpointSlice{Name: service.Name{Namespace: "bench", Name: family.String()}, Service: "wire", Family: family,
			Ports: []service.SlicePort{{Protocol: service.TCP, Port: 8080}}}
		for i := range 40 {
			addr := netip.AddrFrom4([4]byte{10, 0, 1, byte(i + 1)})
			if family == service.IPv6 {
				addr = netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i+1))
			}
			s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: addr, Ready: true, Serving: true, NodeName: "elsewhere"})
		}
		u.Slices[s.Name] = s
	}
	if err := d.apply(u); err != nil {
		return nil, err
	}
	err = d.reconciler.ApplyNode(reconcile.Node{Masquerade: reconcile.PortRange{First: 49152, Last: 65535}})
	return d, errors.Join(err, resolved(d.reconciler.Tables()))
}

// neighbour is who everything is sent to: without one the kernel would have to
// find it.
var neighbour = [6]uint8{2, 0, 0, 0, 0, 1}

// resolved makes every next hop known, as after a first packet to each.
func resolved(set *maps.Set) error {
	generation := set.WireConfig.Load(0).RouteGeneration
	for name, source := range map[string]string{maps.NextHops4: "10.0.0.1", maps.NextHops6: "fd00:1::ff"} {
		hop := bpf.LbNextHop{RouteGeneration: generation, Ifindex: 1, DstMac: neighbour, Mtu: 1500, Source: maps.Addr16(netip.MustParseAddr(source))}
		m := set.Map(name)
		for id := range m.MaxEntries() {
			hop.BackendGeneration = uint16(set.Backends4.At(id).Generation)
			if name == maps.NextHops6 {
				hop.BackendGeneration = uint16(set.Backends6.At(id).Generation)
			}
			if err := m.Put(id, hop); err != nil {
				return err
			}
		}
	}
	return nil
}

func wirePrograms(h hook, set *maps.Set, flood bool) (*ebpf.Collection, error) {
	spec, err := h.load()
	if err != nil {
		return nil, err
	}
	rate := uint32(1 << 31)
	if flood {
		rate = 0
	}
	if err := errors.Join(
		set.SetConstants(spec),
		spec.Variables["new_flow_rate"].Set(rate),
	); err != nil {
		return nil, err
	}
	replacements := map[string]*ebpf.Map{}
	for name, m := range set.All() {
		if declared := spec.Maps[name]; declared != nil {
			declared.MaxEntries = m.MaxEntries()
			replacements[name] = m
		}
	}
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
}

func lanes(h hook, c *ebpf.Collection, set *maps.Set) []*lane {
	v4 := &lane{hook: h, name: "IPv4", run: c.Programs["run4"], floor: c.Programs["floor4"], empty: c.Programs["empty"], packet: c.Maps["traffic"],
		vip: netip.MustParseAddr("192.0.2.10"), flows: set.Map(maps.Flows4), other: set.Map(maps.Newcomers4)}
	if c.Programs["pick4"] != nil {
		v4.steps = c.Programs
	}
	return []*lane{v4, {hook: h, name: "IPv6", v6: true, run: c.Programs["run6"], floor: c.Programs["floor6"], empty: c.Programs["empty"], packet: c.Maps["traffic"],
		vip: netip.MustParseAddr("2001:db8::10"), flows: set.Map(maps.Flows6), other: set.Map(maps.Newcomers6)}}
}

// bars of the IPv4 figures, in ns; IPv6 may take 1.4 times as long.
var wireBars = map[string]float64{
	"not ours": 30, "new flow": 700, "new flow, none written": 60,
	"established, one flow": 55, "established, 100,000 flows": 400, "answer": 55,
}

func (l *lane) figure(name string, value float64) figure {
	bar := wireBars[name]
	if l.v6 {
		bar *= 1.4
	}
	return figure{l.hook.name + " " + l.name + " " + name, value, "ns", "empty program", l.overhead, bar, value <= bar}
}

func (l *lane) measure(flood bool) ([]figure, error) {
	empty, err := l.median(l.empty, 0)
	if err != nil {
		return nil, err
	}
	if err := l.set(l.frame(l.vip, syn), 1, 0); err != nil {
		return nil, err
	}
	floor, err := l.median(l.floor, 0)
	if err != nil {
		return nil, err
	}
	l.overhead = empty
	net := func(ns float64) float64 { return ns - floor + empty }
	if flood {
		const unseen = 99
		if err := l.set(l.frame(l.vip, syn), 1, unseen); err != nil {
			return nil, err
		}
		ns, err := l.median(l.run, l.hook.sent)
		return []figure{l.figure("new flow, none written", net(ns))}, err
	}
	var out []figure
	measured := func(name string, frame [80]byte, flows uint32, want uint32) error {
		if err := l.set(frame, flows, 0); err != nil {
			return err
		}
		ns, err := l.median(l.run, want)
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, l.figure(name, net(ns)))
		return err
	}
	stranger := netip.MustParseAddr("198.18.0.1")
	if l.v6 {
		stranger = netip.MustParseAddr("2001:db8:ffff::1")
	}
	if err := measured("not ours", l.frame(stranger, ack), 1, l.hook.passed); err != nil {
		return nil, err
	}
	ns, err := l.newFlows()
	if err != nil {
		return nil, err
	}
	out = append(out, l.figure("new flow", net(ns)))
	if err := l.establish(many); err != nil {
		return nil, err
	}
	err = errors.Join(
		measured("established, one flow", l.frame(l.vip, ack), 1, l.hook.sent),
		measured("established, 100,000 flows", l.frame(l.vip, ack), many, l.hook.sent),
		l.answers(measured),
	)
	if err != nil || l.steps == nil {
		return out, err
	}
	prices, err := l.prices(floor - empty)
	return append(out, prices...), err
}

// prices are what each step of a packet's way adds to those before, hot.
func (l *lane) prices(overhead float64) ([]figure, error) {
	var out []figure
	times := map[string]float64{}
	for _, s := range []struct{ name, program, after string }{
		{"parsing", "parse4_only", ""}, {"+ look-up in vip_filter", "filter4", "parse4_only"},
		{"+ look-up of the flow", "flow4", "filter4"}, {"+ or of a newcomer", "newcomer4", "filter4"},
		{"+ or of the frontend", "frontend4", "filter4"}, {"  + state, slot and backend", "pick4", "frontend4"},
	} {
		round := uint32(0)
		if s.program == "newcomer4" {
			round = 98
			if err := l.open(round); err != nil {
				return nil, err
			}
		}
		if err := l.set(l.frame(l.vip, ack), 1, round); err != nil {
			return nil, err
		}
		ns, err := l.median(l.steps[s.program], l.hook.sent)
		if err != nil {
			return nil, fmt.Errorf("step %s: %w", s.program, err)
		}
		before := overhead
		if s.after != "" {
			before = times[s.after]
		}
		times[s.program] = ns
		out = append(out, figure{"XDP IPv4 step: " + s.name, ns - before, "ns", "", 0, 0, true})
	}
	return out, nil
}

// open sends the first packet of a round's first client.
func (l *lane) open(round uint32) error {
	if err := l.set(l.frame(l.vip, syn), 1, round); err != nil {
		return err
	}
	_, _, err := l.run.Benchmark(make([]byte, 128), 1, nil)
	return err
}

// newFlows is the median over rounds of 100,000 clients that were never seen.
func (l *lane) newFlows() (float64, error) {
	var all []float64
	for round := range uint32(7) {
		if err := l.set(l.frame(l.vip, syn), 1<<30, round+1); err != nil {
			return 0, err
		}
		_, took, err := l.run.Benchmark(make([]byte, 128), many, nil)
		if err != nil {
			return 0, err
		}
		all = append(all, float64(took.Nanoseconds()))
	}
	return paths.Median(all), nil
}

// establish makes n flows of the clients of round 0 established: their first
// packets are sent, and what these wrote is moved to where an answer and a
// second packet would have moved it.
func (l *lane) establish(n uint32) error {
	const step = 4096
	ks, vs := int(l.flows.KeySize()), int(l.flows.ValueSize())
	action, state := 46, 47 // of struct flow
	for at := uint32(0); at < n; at += step {
		if err := l.setAt(l.frame(l.vip, syn), 1<<30, 0, at-1); err != nil {
			return err
		}
		if _, _, err := l.run.Benchmark(make([]byte, 128), int(min(step, n-at)), nil); err != nil {
			return err
		}
		bucket := make([]byte, l.other.ValueSize())
		for i := range l.other.MaxEntries() {
			if err := l.other.Lookup(i, &bucket); err != nil {
				return err
			}
			for entry := bucket[8:]; len(entry) >= ks+vs; entry = entry[ks+vs:] {
				if entry[ks+action] == 0 {
					continue
				}
				entry[ks+state] = 1
				if err := l.flows.Put(entry[:ks], entry[ks:ks+vs]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// answers measures the answer of the first client's flow.
func (l *lane) answers(measured func(string, [80]byte, uint32, uint32) error) error {
	key, value := make([]byte, l.flows.KeySize()), make([]byte, l.flows.ValueSize())
	for it := l.flows.Iterate(); it.Next(&key, &value); {
		const back = 4 // FLOW_RETURN
		if value[46] != back {
			continue
		}
		// The way back to the client is known, as after a first answer.
		binary.NativeEndian.PutUint32(value[24:], 1) // route generation
		binary.NativeEndian.PutUint32(value[28:], 1) // device
		copy(value[32:], neighbour[:])
		if err := l.flows.Put(key, value); err != nil {
			return err
		}
		frame := l.frame(l.vip, ack)
		if l.v6 {
			copy(frame[22:54], key[:32])
			copy(frame[54:58], key[32:36])
		} else {
			copy(frame[26:34], key[:8])
			copy(frame[34:38], key[8:12])
		}
		return measured("answer", frame, 0, l.hook.sent)
	}
	return errors.New("no flow has an answer")
}

// frame is a segment to an address's port 80, with room for its client.
func (l *lane) frame(to netip.Addr, flags byte) [80]byte {
	var f [80]byte
	tcp := f[34:]
	if l.v6 {
		tcp = f[54:]
		copy(f[12:], []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64})
		client := netip.MustParseAddr("2001:db8:1::1").As16()
		vip := to.As16()
		copy(f[22:], client[:])
		copy(f[38:], vip[:])
	} else {
		copy(f[12:], []byte{8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6})
		vip := to.As4()
		copy(f[30:], vip[:])
	}
	binary.BigEndian.PutUint16(tcp[2:], 80)
	tcp[12], tcp[13] = 5<<4, flags
	return f
}

// set prepares what is sent: flows clients in turn, of a round of their own.
func (l *lane) set(frame [80]byte, flows, round uint32) error {
	return l.setAt(frame, flows, round, ^uint32(0))
}

// setAt is set with the turn before the first.
func (l *lane) setAt(frame [80]byte, flows, round, at uint32) error {
	const first = 198<<24 | 18<<16 // of the block for benchmarks
	t := bpf.BenchBenchTraffic{Frame: frame, Flows: flows, At: at, Clients: first + round<<8}
	return l.packet.Put(uint32(0), t)
}

// median is that of 9 measurements, in ns; want is the verdict.
func (l *lane) median(program *ebpf.Program, want uint32) (float64, error) {
	var all []float64
	for range 9 {
		verdict, took, err := program.Benchmark(make([]byte, 128), 1_000_000, nil)
		if err != nil {
			return 0, fmt.Errorf("run program: %w", err)
		}
		if want != 0 && verdict != want {
			return 0, fmt.Errorf("%s %v: verdict %d, want %d", l.name, program, verdict, want)
		}
		all = append(all, float64(took.Nanoseconds()))
	}
	return paths.Median(all), nil
}
