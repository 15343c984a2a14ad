// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

var packets = flag.Int("packets", 100_000, "random packets to try")

// Verdicts of XDP.
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3
)

// lab runs the XDP program on single packets: no device, no route; the ways to
// endpoints are known beforehand.
type lab struct {
	program *ebpf.Program
	set     *maps.Set
}

const (
	labVIP4, labVIP6   = "192.0.2.10", "2001:db8::10"
	labNode4, labNode6 = "10.0.0.1", "fd00:1::ff"
)

func newLab(t *testing.T) *lab {
	t.Helper()
	world.RequireRoot(t)
	barrier := world.Must(maps.NewBarrier())(t)
	t.Cleanup(barrier.Close)
	r := world.Must(reconcile.New(reconcile.Config{
		Attach: func(*maps.Set) error { return nil }, Wait: barrier.Wait,
		Node: reconcile.Node{Masquerade: reconcile.PortRange{First: 49152, Last: 65535}},
	}))(t)
	name := service.Name{Namespace: "lab", Name: "web"}
	u := compile.Update{
		Services: map[service.Name]*service.Service{name: {
			Name: name, Type: service.LoadBalancer,
			ClusterIPs:      []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")},
			LoadBalancerIPs: []netip.Addr{netip.MustParseAddr(labVIP4), netip.MustParseAddr(labVIP6)},
			Ports: []service.Port{
				{Name: "tcp", Protocol: service.TCP, Port: 80}, {Name: "udp", Protocol: service.UDP, Port: 80},
			},
		}},
		Slices: map[service.Name]*service.EndpointSlice{},
	}
	for _, family := range []service.Family{service.IPv4, service.IPv6} {
		s := &service.EndpointSlice{
			Name: service.Name{Namespace: "lab", Name: family.String()}, Service: "web", Family: family,
			Ports: []service.SlicePort{{Name: "tcp", Protocol: service.TCP, Port: 8080}, {Name: "udp", Protocol: service.UDP, Port: 8080}},
		}
		for i, on := range []string{"here", "elsewhere"} {
			addr := netip.AddrFrom4([4]byte{10, 1, byte(i), 1})
			if family == service.IPv6 {
				addr = netip.MustParseAddr(fmt.Sprintf("fd00:1:%x::1", i+1))
			}
			s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: addr, Ready: true, Serving: true, NodeName: on})
		}
		u.Slices[s.Name] = s
	}
	c := compile.New(compile.Config{Node: service.Node{Name: "here"}})
	if err := r.Apply(c.Apply(u)); err != nil {
		t.Fatal(err)
	}
	l := &lab{set: r.Tables()}
	t.Cleanup(l.set.Close)
	l.load(t)
	l.resolve(t)
	return l
}

func (l *lab) load(t *testing.T) {
	t.Helper()
	spec := world.Must(bpf.LoadXdp())(t)
	if err := errors.Join(
		l.set.SetConstants(spec),
		spec.Variables["new_flow_rate"].Set(uint32(1<<31)),
	); err != nil {
		t.Fatal(err)
	}
	replacements := map[string]*ebpf.Map{}
	for name, m := range l.set.All() {
		if declared := spec.Maps[name]; declared != nil {
			declared.MaxEntries = m.MaxEntries()
			replacements[name] = m
		}
	}
	c := world.Must(ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements}))(t)
	t.Cleanup(c.Close)
	l.program = c.Programs["portolan_xdp"]
}

// resolve makes the ways to all endpoints known. They leave by the device that
// test runs come in by: lo.
func (l *lab) resolve(t *testing.T) {
	t.Helper()
	generation := l.set.WireConfig.Load(0).RouteGeneration
	for name, source := range map[string]string{maps.NextHops4: labNode4, maps.NextHops6: labNode6} {
		hop := bpf.LbNextHop{RouteGeneration: generation, Ifindex: 1, Mtu: 1500, Source: maps.Addr16(netip.MustParseAddr(source))}
		for id := range uint32(16) {
			hop.BackendGeneration = uint16(l.set.Backends4.At(id).Generation)
			if name == maps.NextHops6 {
				hop.BackendGeneration = uint16(l.set.Backends6.At(id).Generation)
			}
			if err := l.set.Map(name).Put(id, hop); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// run gives a frame to the program.
func (l *lab) run(t *testing.T, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	in := frame
	if len(in) < 14 {
		t.Fatalf("a frame of %d bytes cannot be run", len(in))
	}
	verdict, out, err := l.program.Test(in)
	if err != nil {
		t.Fatalf("run %x: %v", frame, err)
	}
	return verdict, out
}

// sum16 is the ones' complement sum of RFC 1071, from scratch.
func sum16(parts ...[]byte) uint16 {
	var sum uint32
	for _, data := range parts {
		for i := 0; i+1 < len(data); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(data[i:]))
		}
		if len(data)%2 == 1 {
			sum += uint32(data[len(data)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// segment is a frame of IP without options and TCP or UDP, checksums right.
type segment struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        byte
	flags        byte // TCP
	ttl          byte
	payload      string
	noChecksum   bool // UDP, as in tunnels (RFC 6935)
}

func (s segment) frame() []byte {
	f := make([]byte, 12, 128+len(s.payload))
	var l4 []byte
	if s.proto == 6 {
		l4 = make([]byte, 20)
		l4[12], l4[13] = 5<<4, s.flags
	} else {
		l4 = make([]byte, 8)
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(s.payload)))
	}
	binary.BigEndian.PutUint16(l4, s.sport)
	binary.BigEndian.PutUint16(l4[2:], s.dport)
	l4 = append(l4, s.payload...)
	if !s.noChecksum {
		at := 16
		if s.proto != 6 {
			at = 6
		}
		check := ^sum16(pseudo(s.src, s.dst, s.proto, len(l4)), l4)
		if check == 0 && s.proto == 17 {
			check = 0xffff
		}
		binary.BigEndian.PutUint16(l4[at:], check)
	}
	if s.src.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, s.ttl, s.proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		copy(ip[12:], s.src.AsSlice())
		copy(ip[16:], s.dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum16(ip))
		return append(append(append(f, 8, 0), ip...), l4...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, s.proto, s.ttl
	binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
	copy(ip[8:], s.src.AsSlice())
	copy(ip[24:], s.dst.AsSlice())
	return append(append(append(f, 0x86, 0xdd), ip...), l4...)
}

func pseudo(src, dst netip.Addr, proto byte, length int) []byte {
	p := append(src.AsSlice(), dst.AsSlice()...)
	return append(p, 0, 0, byte(length>>8), byte(length), 0, 0, 0, proto)
}

// intact tells whether a frame's checksums are right; UDP may have none.
func intact(f []byte) error {
	ip := f[14:]
	var src, dst netip.Addr
	var l4 []byte
	var proto byte
	if ip[0]>>4 == 4 {
		if sum16(ip[:20]) != 0xffff {
			return fmt.Errorf("IP header sums to %#x", sum16(ip[:20]))
		}
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		proto, l4 = ip[9], ip[20:binary.BigEndian.Uint16(ip[2:])]
	} else {
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		proto, l4 = ip[6], ip[40:40+int(binary.BigEndian.Uint16(ip[4:]))]
	}
	if proto == 17 && binary.BigEndian.Uint16(l4[6:]) == 0 {
		return nil
	}
	if got := sum16(pseudo(src, dst, proto, len(l4)), l4); got != 0xffff {
		return fmt.Errorf("protocol %d sums to %#x", proto, got)
	}
	return nil
}

// ends are the addresses and ports of a frame without IP options.
func ends(f []byte) (src, dst netip.AddrPort) {
	ip := f[14:]
	if ip[0]>>4 == 4 {
		src, dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(ip[20:])),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(ip[22:]))
		return src, dst
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[8:24])), binary.BigEndian.Uint16(ip[40:])),
		netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[24:40])), binary.BigEndian.Uint16(ip[42:]))
}

// draw makes a first packet of a random client.
func draw(r *rand.Rand) segment {
	s := segment{
		src: netip.AddrFrom4([4]byte{198, 51, byte(r.Uint32()), byte(1 + r.Uint32N(254))}), dst: netip.MustParseAddr(labVIP4),
		sport: uint16(1 + r.Uint32N(65535)), dport: 80, proto: 6, flags: 2, ttl: byte(2 + r.Uint32N(254)),
	}
	if r.Uint32N(2) == 0 {
		a := [16]byte{0x20, 1, 0xd, 0xb8, 9, byte(r.Uint32()), 15: byte(1 + r.Uint32N(254))}
		s.src, s.dst = netip.AddrFrom16(a), netip.MustParseAddr(labVIP6)
	}
	if r.Uint32N(2) == 0 {
		s.proto = 17
		s.noChecksum = r.Uint32N(4) == 0
		payload := make([]byte, r.Uint32N(64))
		for i := range payload {
			payload[i] = byte(r.Uint32())
		}
		s.payload = string(payload)
	}
	return s
}

// What is translated has right checksums, the right addresses, one hop less if
// it is sent on, and nothing else changed; its answer finds the way back.
func TestTranslatedPacketsAreRightToTheByte(t *testing.T) {
	l := newLab(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const batch = 1000
	for range max(1, *packets/2/batch) {
		sent := map[segment]segment{} // answer -> request
		for range batch {
			s := draw(r)
			in := s.frame()
			verdict, out := l.run(t, in)
			if err := l.judgeRequest(&s, in, verdict, out); err != nil {
				t.Fatalf("%+v: %v\nin  %x\nout %x", s, err, in, out)
			}
			if verdict == xdpTX {
				src, dst := ends(out)
				sent[segment{
					src: dst.Addr(), dst: src.Addr(), sport: dst.Port(), dport: src.Port(),
					proto: s.proto, flags: 0x12, ttl: 60, payload: s.payload, noChecksum: s.noChecksum,
				}] = s
			}
		}
		l.routeBack(t)
		for answer, s := range sent {
			in := answer.frame()
			verdict, out := l.run(t, in)
			if err := judgeAnswer(&s, in, verdict, out); err != nil {
				t.Fatalf("answer %+v to %+v: %v\nin  %x\nout %x", answer, s, err, in, out)
			}
		}
	}
}

func (l *lab) judgeRequest(s *segment, in []byte, verdict uint32, out []byte) error {
	src, dst := ends(out)
	near := dst.Addr() == netip.MustParseAddr("10.1.0.1") || dst.Addr() == netip.MustParseAddr("fd00:1:1::1")
	far := dst.Addr() == netip.MustParseAddr("10.1.1.1") || dst.Addr() == netip.MustParseAddr("fd00:1:2::1")
	hops := byte(0)
	switch {
	case dst.Port() != 8080 || !near && !far:
		return fmt.Errorf("verdict %d, went to %s, which is no endpoint", verdict, dst)
	case near && verdict != xdpPass, far && verdict != xdpTX:
		return fmt.Errorf("verdict %d for %s", verdict, dst)
	case near && src != netip.AddrPortFrom(s.src, s.sport):
		return fmt.Errorf("the client became %s", src)
	case far && src.Addr() != netip.MustParseAddr(labNode4) && src.Addr() != netip.MustParseAddr(labNode6), far && src.Port() < 49152:
		return fmt.Errorf("masqueraded as %s", src)
	case far:
		hops = 1
	}
	return sameBut(in, out, hops, verdict == xdpTX)
}

func judgeAnswer(s *segment, in []byte, verdict uint32, out []byte) error {
	src, dst := ends(out)
	switch {
	case verdict != xdpTX:
		return fmt.Errorf("verdict %d", verdict)
	case src != netip.AddrPortFrom(s.dst, s.dport), dst != netip.AddrPortFrom(s.src, s.sport):
		return fmt.Errorf("goes from %s to %s", src, dst)
	}
	return sameBut(in, out, 1, true)
}

// sameBut compares all that translation leaves alone.
func sameBut(in, out []byte, hops byte, sent bool) error {
	if len(in) != len(out) {
		return fmt.Errorf("%d bytes became %d", len(in), len(out))
	}
	if err := intact(out); err != nil {
		return err
	}
	blank := func(f []byte) []byte {
		f = bytes.Clone(f)
		if sent {
			clear(f[:12])
		}
		l4, check := 34, 50
		if f[12] == 8 {
			f[22] = 0 // TTL, compared apart
			clear(f[24:34])
		} else {
			l4, check = 54, 70
			f[21] = 0
			clear(f[22:54])
		}
		clear(f[l4 : l4+4])
		if proto := in[23]; f[12] == 8 && proto == 17 || f[12] != 8 && in[20] == 17 {
			check = l4 + 6
		}
		clear(f[check : check+2])
		return f
	}
	ttl := 22
	if in[12] != 8 {
		ttl = 21
	}
	if out[ttl] != in[ttl]-hops {
		return fmt.Errorf("TTL %d became %d", in[ttl], out[ttl])
	}
	if !bytes.Equal(blank(in), blank(out)) {
		return errors.New("bytes changed that are nobody's business")
	}
	return nil
}

// routeBack makes the ways to all clients known, as the kernel's routes would:
// it moves answers from the newcomers to the established flows, with a way.
func (l *lab) routeBack(t *testing.T) {
	t.Helper()
	generation := l.set.WireConfig.Load(0).RouteGeneration
	for i := range l.set.Map(maps.Newcomers4).MaxEntries() {
		var b4 bpf.LbNewcomers4
		var b6 bpf.LbNewcomers6
		if err := errors.Join(l.set.Map(maps.Newcomers4).Lookup(i, &b4), l.set.Map(maps.Newcomers6).Lookup(i, &b6)); err != nil {
			t.Fatal(err)
		}
		for way := range b4.Way {
			e4, e6 := &b4.Way[way], &b6.Way[way]
			var err error
			if f := &e4.Flow.Flow; f.Action == flowReturn {
				f.RouteGeneration, f.Ifindex, f.Mtu = generation, 1, 1500
				err = l.set.Flows4.Put(e4.Key, e4.Flow)
			}
			if f := &e6.Flow.Flow; f.Action == flowReturn {
				f.RouteGeneration, f.Ifindex, f.Mtu = generation, 1, 1500
				err = errors.Join(err, l.set.Flows6.Put(e6.Key, e6.Flow))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

const flowReturn = 4 // FLOW_RETURN of bpf/include/types.h

// Whatever is wrong with a packet, it is let pass as it came, or is dropped; no
// part of it is ever translated alone.
func TestBrokenPacketsAreNeverTranslated(t *testing.T) {
	l := newLab(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range *packets / 2 {
		s := draw(r)
		in, why := spoil(r, &s)
		verdict, out := l.run(t, in)
		if verdict == xdpTX || verdict == xdpPass && !bytes.Equal(in, out) {
			t.Fatalf("%s of %+v: verdict %d\nin  %x\nout %x", why, s, verdict, in, out)
		}
	}
}

// spoil makes a packet that must not be translated.
func spoil(r *rand.Rand, s *segment) (frame []byte, why string) {
	v4 := s.src.Is4()
	f := s.frame()
	switch r.Uint32N(9) {
	case 0:
		return f[:14+r.Uint32N(uint32(len(f)-14))], "a truncation"
	case 1:
		f[12], f[13] = 0x81, 0x00
		return f, "a VLAN tag"
	case 2:
		f[14] = f[14]&0xf | byte(r.Uint32N(4)|8)<<4
		return f, "another IP version"
	case 3:
		if v4 {
			f[14] = 0x40 | byte(r.Uint32N(5))
		} else {
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)))
		}
		return f, "a length that is wrong"
	case 4:
		if v4 {
			// A loose source route of one hop.
			f = append(f[:34:34], append([]byte{131, 7, 4, 1, 2, 3, 4, 0}, f[34:]...)...)
			f[14] = 0x47
			binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		} else {
			f[20] = 43 // a routing header
		}
		return f, "a source route"
	case 5:
		if s.proto == 6 {
			at := len(f) - 8
			f[at] = byte(r.Uint32N(5)) << 4
			return f, "a TCP offset within the header"
		}
		s.dport = uint16(1024 + r.Uint32N(40000))
		s.dst = netip.MustParseAddr("198.18.0.1")
		if !v4 {
			s.dst = netip.MustParseAddr("2001:db8:ffff::1")
		}
		return s.frame(), "somebody else's packet"
	case 6:
		sources4 := []string{"127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1"}
		sources6 := []string{"::1", "::", "ff02::1", "::ffff:198.51.100.1"}
		s.src = netip.MustParseAddr(sources4[r.IntN(len(sources4))])
		if !v4 {
			s.src = netip.MustParseAddr(sources6[r.IntN(len(sources6))])
		}
		return s.frame(), "a source that is nobody's"
	case 7:
		if s.proto == 6 {
			s.flags = []byte{0, 1, 4, 16, 17, 18, 20, 24}[r.IntN(8)]
			return s.frame(), "TCP that opens nothing and belongs to nothing"
		}
		fallthrough
	default:
		proto := []byte{2, 4, 41, 47, 50, 51, 89, 103, 115}[r.IntN(9)]
		if v4 {
			f[23] = proto
		} else {
			f[20] = proto
		}
		return f, "a protocol without ports"
	}
}
