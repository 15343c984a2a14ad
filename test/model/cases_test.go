// SPDX-License-Identifier: Apache-2.0

// Needs root and Linux 6.1.

package model

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

// Packets with which programs and model once differed, each with what is right.
// The model is asked as well.

const (
	client4, client6 = "198.51.100.1", "2001:db8:100::1"
	web4, web6       = "203.0.2.10", "2001:db8:2::a" // endpoints everywhere
)

func tuple(src, dst string, proto uint8) Tuple {
	return Tuple{netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), proto}
}

// after plays packets that all come in by the first device, from an empty
// memory, on programs and model alike, and returns what became of the last.
func (l *lab) after(t *testing.T, hook Hook, packets ...[]byte) Outcome {
	t.Helper()
	var events []event
	for _, ip := range packets {
		events = append(events, event{Arrival: Arrival{Hook: hook, Device: l.cluster.Devices[0], Frame: onLink(l.cluster.Devices[0].MAC, ip)}})
	}
	var last Outcome
	l.saw = func(_ Arrival, o Outcome) { last = o }
	defer func() { l.saw = nil }()
	if err := l.again(1, events); err != nil {
		t.Fatal(err)
	}
	return last
}

// requests, whole and right.
func request(t Tuple) *shape { return &shape{tuple: t, ttl: 64, flags: SYN} }

func answering(t Tuple) *shape { return &shape{tuple: t, ttl: 64, flags: SYN | ACK} }

func (s *shape) expiring() *shape           { s.ttl = 1; return s }
func (s *shape) carrying(n int) *shape      { s.payload = make([]byte, n); return s }
func (s *shape) saying(icmp ...byte) *shape { s.icmp = icmp; return s }

// inTunnel puts a packet into one to an endpoint here.
func inTunnel(ip []byte) []byte {
	return append(ipHeader(ipInIP, otherNode(false), podAddr("here1", false), len(ip)), ip...)
}

// empty4 is a later fragment with no-operations and without data.
func empty4(s *shape) []byte {
	s.options = []byte{1, 1, 1, 1}
	ip := s.packet()[:24]
	ip[3], ip[7] = 24, 21
	fix(ip)
	return ip
}

// longer says that a packet is longer than it is.
func longer(ip []byte) []byte { ip[3]++; return ip }

// To "remote", 203.0.2.13 and 2001:db8:2::d, only clients inside are let, and
// its one endpoint is elsewhere; that of "lost", 2001:db8:2::10, has no route.
var cases = []struct {
	name    string
	packets [][]byte
	verdict Verdict // of the last packet
	reason  Reason
}{
	{"the first fragment's sender is told that it expired",
		fragment(request(tuple("10.1.1.9:1025", "203.0.2.13:80", UDP)).carrying(64).expiring().packet(), 7, 48)[:1], Back, Expired},
	{"nobody is told about a later fragment",
		fragment(request(tuple("10.1.1.9:1025", "203.0.2.13:80", UDP)).carrying(64).expiring().packet(), 7, 48), Drop, Expired},
	{"loopback is not answered",
		[][]byte{request(tuple("127.0.0.1:0", web4+":0", ICMP)).saying(8, 0, 0, 0, 0, 1, 0, 1).packet()}, Drop, Spoofed},
	{"everybody is not answered",
		[][]byte{request(tuple("255.255.255.255:0", web4+":0", ICMP)).saying(8, 0, 0, 0, 0, 1, 0, 1).packet()}, Drop, Spoofed},
	{"a group is not told that there is no such port",
		[][]byte{request(tuple("[ff02::1]:1025", "["+web6+"]:81", UDP)).packet()}, Drop, Spoofed},
	{"a link-local client finds no way past its link",
		[][]byte{request(tuple("[fe80::1]:1025", "[2001:db8:2::10]:80", UDP)).packet()}, Drop, NoRoute},
	{"a link-local client finds no way to what may be elsewhere",
		[][]byte{request(tuple("[fe80::1]:1025", "[2001:db8:2::18]:80", UDP)).packet()}, Drop, NoRoute},
	{"an endpoint whose slice names no node is found here",
		[][]byte{request(tuple("[2001:db8:100::1]:1025", "[2001:db8:2::18]:80", UDP)).packet()}, Pass, None},
	{"the last byte of a packet may be an option",
		[][]byte{empty4(request(tuple(client4+":1025", web4+":80", UDP)))}, Pass, Fragment},
	{"an ICMP message shorter than its header is malformed, whatever follows",
		[][]byte{append(request(tuple("["+client6+"]:0", "["+web6+"]:0", ICMPv6)).saying(128, 0, 0, 0, 1, 2, 3).packet(), 0, 0)}, Pass, Malformed},
	{"an answer over SCTP is known by any port",
		[][]byte{request(tuple("10.1.1.9:1025", "203.0.2.13:9", SCTP)).packet(), answering(tuple("10.1.1.1:9", "172.16.0.1:1025", SCTP)).packet()}, Send, None},
	{"SCTP in mid-flow is left to whoever knows it",
		[][]byte{(&shape{tuple: tuple("10.1.1.9:1025", "203.0.2.13:9", SCTP), ttl: 64, flags: ACK}).packet()}, Pass, None},
	{"a complaint about the first fragment of an answer is for who sent that",
		[][]byte{request(tuple("[fd00:1:1::9]:1025", "[2001:db8:2::d]:80", UDP)).packet(),
			routerSays(fragment(request(tuple("[2001:db8:2::d]:80", "[fd00:1:1::9]:1025", UDP)).carrying(1600).packet(), 7, 1400)[0][:100],
				"[fd00:a::fe]", "[2001:db8:2::d]", 2, 0, 0, 0, 0, 0, 5, 0)}, Send, None},
	{"a complaint about a later fragment names no flow",
		[][]byte{request(tuple("[fd00:1:1::9]:1025", "[2001:db8:2::d]:80", UDP)).packet(),
			routerSays(fragment(request(tuple("[2001:db8:2::d]:80", "[fd00:1:1::9]:1025", UDP)).carrying(1600).packet(), 7, 800)[1][:100],
				"[fd00:a::fe]", "[2001:db8:2::d]", 2, 0, 0, 0, 0, 0, 5, 0)}, Pass, None},
	{"what is malformed in a tunnel does not reach the stack",
		[][]byte{inTunnel(longer(request(tuple(client4+":1025", "203.0.2.20:80", TCP)).packet()))}, Drop, Malformed},
}

// routerSays is a complaint about what a packet began with.
func routerSays(about []byte, router, to string, icmp ...byte) []byte {
	proto := uint8(ICMP)
	if about[0]>>4 == 6 {
		proto = ICMPv6
	}
	return request(tuple(router+":0", to+":0", proto)).saying(append(icmp, about...)...).packet()
}

func TestPacketsThatOnceWentWrong(t *testing.T) {
	l := newLab(t)
	for _, c := range cases {
		for _, hook := range []Hook{XDP, Ingress} {
			reason := c.reason
			if hook == XDP && c.verdict == Pass {
				reason = None // tc counts it
			}
			if o := l.after(t, hook, c.packets...); o.Verdict != c.verdict || o.Reason != reason {
				t.Errorf("%s: %s: %s and reason %d, want %s and %d", c.name, hook, o.Verdict, o.Reason, c.verdict, reason)
			}
		}
	}
}

// An error that does not name the flow helps nobody.
func TestTooBigNamesThePortsBehindAFragmentHeader(t *testing.T) {
	l := newLab(t)
	s := request(tuple("[fd00:1:1::9]:1025", "[2001:db8:2::d]:80", UDP)).carrying(1600)
	o := l.after(t, Ingress, fragment(s.packet(), 7, 1480)[0])
	if o.Verdict != Back || o.Reason != TooBig {
		t.Fatalf("%s and reason %d", o.Verdict, o.Reason)
	}
	ports := o.Frame[link+40+8+40+8:]
	if src, dst := binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:]); src != 1025 || dst != 80 {
		t.Errorf("ports %d and %d", src, dst)
	}
}

// Packets that were merged on their way here, or are cut up later, are as large
// as one of them.
func TestMergedPacketsAreComparedWithThePathOneByOne(t *testing.T) {
	l := newLab(t)
	to := func(proto uint8) *shape {
		return request(tuple("10.1.1.9:1025", "203.0.2.13:80", proto)).carrying(2900)
	}
	options := to(TCP)
	options.words = 3
	for _, c := range []struct {
		shape   *shape
		segment int
		verdict Verdict
	}{
		{to(UDP), 1472, Send}, {to(UDP), 1473, Back},
		{to(TCP), 1460, Send}, {to(TCP), 1461, Back},
		{options, 1448, Send}, {options, 1449, Back},
	} {
		a := Arrival{Hook: Ingress, Device: l.cluster.Devices[0], Frame: onLink(l.cluster.Devices[0].MAC, c.shape.packet()), Segment: c.segment}
		var got Outcome
		l.saw = func(_ Arrival, o Outcome) { got = o }
		if err := l.again(1, []event{{Arrival: a}}); err != nil || got.Verdict != c.verdict {
			t.Errorf("protocol %d, %d bytes each: %s, want %s; %v", c.shape.tuple.Proto, c.segment, got.Verdict, c.verdict, err)
		}
	}
}

// The kernel makes no room in merged packets of a kind that it does not know, as
// those of a test run are.
func TestWhatCannotBePutIntoATunnelIsCounted(t *testing.T) {
	l := newLab(t)
	before := world.Must(l.reasons())(t)
	dropped := 0
	for port := range 32 { // of which about half are for the endpoint elsewhere
		from := fmt.Sprintf("%s:%d", client4, 1025+port)
		frame := onLink(l.cluster.Devices[0].MAC, request(tuple(from, "203.0.2.21:80", TCP)).carrying(2000).packet())
		if world.Must(l.run(Arrival{Hook: Ingress, Device: l.cluster.Devices[0], Frame: frame, Segment: 500}))(t).Verdict == Drop {
			dropped++
		}
	}
	after := world.Must(l.reasons())(t)
	if counted := after[Malformed] - before[Malformed]; dropped == 0 || counted != dropped {
		t.Errorf("%d dropped, %d counted", dropped, counted)
	}
}

// What does not fit one buffer of a device comes in several.
func TestAnErrorAboutAFrameOfSeveralBuffersQuotesItsBeginning(t *testing.T) {
	l := newLab(t)
	for _, proto := range []uint8{TCP, UDP} {
		o := l.after(t, XDP, request(tuple("10.1.1.9:1025", "203.0.2.13:80", proto)).carrying(8000).packet())
		if o.Verdict != Back || o.Reason != TooBig {
			t.Errorf("protocol %d: %s and reason %d", proto, o.Verdict, o.Reason)
		}
	}
}

// Whoever claims an address of others must not have them flooded with errors. The
// model knows no time, so it is not asked.
func TestErrorsAreLimitedInTime(t *testing.T) {
	l := newLab(t)
	l.errorRate = 2
	if err := l.load(l.set); err != nil {
		t.Fatal(err)
	}
	frame := onLink(l.cluster.Devices[0].MAC, request(tuple(client4+":1025", web4+":81", UDP)).packet())
	for _, hook := range []Hook{XDP, Ingress} {
		sent, answered, begin := 0, 0, time.Now()
		for ; time.Since(begin) < 100*time.Millisecond; sent++ {
			o, err := l.run(Arrival{Hook: hook, Device: l.cluster.Devices[0], Frame: frame})
			if err != nil {
				t.Fatal(err)
			}
			if o.Verdict == Send {
				answered++
			}
		}
		windows := int(time.Since(begin)>>24) + 2
		if limit := 2 * l.cpus * windows; answered == 0 || answered > limit {
			t.Errorf("%s: %d of %d answered, want at most %d", hook, answered, sent, limit)
		}
	}
}

// The ways to endpoints are kept by the endpoints' ids, which are used again.
func TestAnEndpointWithAFormerIDHasAWayOfItsOwn(t *testing.T) {
	l := newLab(t)
	var requests [][]byte
	for _, set := range l.cluster.sets {
		for _, proto := range []uint8{TCP, UDP, SCTP} {
			vip := withPort(set.spec.address(ClusterIP, false), set.spec.port(proto, ClusterIP))
			for i := range 8 {
				client := withPort(netip.AddrFrom4([4]byte{10, 1, 1, byte(9 + i)}), 1025)
				requests = append(requests, request(Tuple{client, vip, proto}).packet())
			}
		}
	}
	l.after(t, Ingress, requests...)
	for _, set := range l.cluster.sets {
		for i := range set.spec.endpoints {
			set.demote(i, Dead)
		}
	}
	if err := l.apply(l.cluster.sets...); err != nil {
		t.Fatal(err)
	}
	if err := l.reconciler.RecycleNow(); err != nil {
		t.Fatal(err)
	}
	for i := range l.cluster.sets {
		set := l.cluster.sets[len(l.cluster.sets)-1-i]
		set.revive()
		if err := l.apply(set); err != nil {
			t.Fatal(err)
		}
	}
	l.after(t, Ingress, requests...)
}

// TCP and UDP sockets of the node have ports that SCTP may have, too.
func TestASocketTakesNoPortFromSCTP(t *testing.T) {
	l := newLab(t)
	for _, network := range []string{"udp4", "udp6"} {
		socket := world.Must(net.ListenPacket(network, ":1025"))(t)
		defer socket.Close()
	}
	for _, t5 := range []Tuple{tuple("10.1.1.9:1025", "203.0.2.13:9", SCTP), tuple("[fd00:1:1::9]:1025", "[2001:db8:2::d]:9", SCTP)} {
		if o := l.after(t, Ingress, request(t5).packet()); o.Verdict != Send {
			t.Errorf("%v: %s and reason %d", t5, o.Verdict, o.Reason)
		}
	}
}

func TestAnAssociationStaysWithItsEndpoint(t *testing.T) {
	l := newLab(t)
	d, web := l.cluster.Devices[0], l.cluster.set("web")
	of := tuple(client4+":1025", web4+":9", SCTP)
	packet := func(flags byte) event {
		return event{Arrival: Arrival{Hook: Ingress, Device: d, Frame: onLink(d.MAC, (&shape{tuple: of, ttl: 64, flags: flags}).packet())}}
	}
	events := []event{packet(SYN), packet(ACK)}
	for i := range web.spec.endpoints {
		events = append(events, event{set: 0, endpoint: i, state: Dead})
	}
	var ends []netip.Addr
	l.saw = func(_ Arrival, o Outcome) { ends = append(ends, parse(o.Frame).tuple.Dst.Addr()) }
	if err := l.again(1, append(events, packet(ACK))); err != nil {
		t.Fatal(err)
	}
	if last := ends[len(ends)-1]; last != ends[0] {
		t.Errorf("went to %s, after %s", last, ends[0])
	}
}
