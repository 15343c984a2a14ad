// SPDX-License-Identifier: Apache-2.0

// Needs root; any kernel from 5.7.
//
// One node with a client and a server pod:
//
//	10.244.1.2 client ── node ── server 10.244.1.3, fd00:10:244:1::3
package world_test

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

// shortly is long enough for a local answer and short for a test that expects
// none.
const shortly = 200 * time.Millisecond

// pair makes a client probe and a server that listens as told.
func pair(t *testing.T, listeners ...string) (client *world.Probe, server *world.Pod) {
	t.Helper()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	client = world.Must(world.Must(node.AddPod("client"))(t).Probe())(t)
	server = world.Must(node.AddPod("server"))(t)
	world.Must(server.Serve("server", listeners...))(t)
	return client, server
}

func TestProbeReportsTheKernelsErrno(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp:80")
	v4, v6 := server.IPv4().String(), "["+server.IPv6().String()+"]"
	for _, c := range []struct {
		name, proto, addr string
		opts              []world.Option
		stage             string
		errno             syscall.Errno
	}{
		{"closed tcp port", "tcp", v4 + ":81", nil, "connect", syscall.ECONNREFUSED},
		{"closed tcp port IPv6", "tcp", v6 + ":81", nil, "connect", syscall.ECONNREFUSED},
		{"closed tcp port mapped", "tcp", v4 + ":81", []world.Option{world.Mapped()}, "connect", syscall.ECONNREFUSED},
		{"closed udp port", "udp", v4 + ":81", nil, "receive", syscall.ECONNREFUSED},
		{"no one answers", "tcp", "203.0.113.1:80", []world.Option{world.Timeout(shortly)}, "connect", syscall.ETIMEDOUT},
		{"foreign source", "tcp", v4 + ":80", []world.Option{world.From("203.0.113.9:0")}, "bind", syscall.EADDRNOTAVAIL},
		{"broadcast", "tcp", "255.255.255.255:80", nil, "connect", syscall.ENETUNREACH},
	} {
		r := client.Dial(c.proto, c.addr, c.opts...)
		if r.Stage != c.stage || r.Errno != c.errno || r.OK() {
			t.Errorf("%s: %v, want %s: %v", c.name, r, c.stage, c.errno)
		}
	}
	if r := client.Dial("tcp", "no address"); r.Problem == "" || r.OK() {
		t.Errorf("dial of no address: %v, want a problem", r)
	}
}

func TestProbeSpeaksThroughMappedSockets(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp:80", "udp:80")
	want := netip.AddrPortFrom(netip.AddrFrom16(server.IPv4().As16()), 80)
	for _, proto := range []string{"tcp", "udp"} {
		r := client.Dial(proto, server.IPv4().String()+":80", world.Mapped())
		if r.Backend != "server" || r.Peer != want {
			t.Errorf("%s: %v, want backend server and peer %v", proto, r, want)
		}
	}
	r := client.Dial("udp", server.IPv4().String()+":80", world.Mapped(), world.Unconnected())
	if r.Backend != "server" || r.From != want || r.Peer.IsValid() {
		t.Errorf("unconnected: %v, want an answer from %v and no peer", r, want)
	}
}

func TestUnconnectedUDPTellsWhoAnswered(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "udp:53")
	for _, addr := range []netip.Addr{server.IPv4(), server.IPv6()} {
		to := netip.AddrPortFrom(addr, 53)
		r := client.Dial("udp", to.String(), world.Unconnected())
		if r.Backend != "server" || r.From != to || r.Peer.IsValid() || r.Local.Port() != r.Seen.Port() {
			t.Errorf("%v: %v, want an answer from there, no peer, the local port seen", to, r)
		}
	}
}

func TestOpenSocketIsUsedAgainAndAgain(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp:80", "udp:80", "http:8080")
	for _, c := range []struct{ proto, port string }{{"tcp", ":80"}, {"udp", ":80"}, {"http", ":8080"}} {
		conn, r := client.Open(c.proto, server.IPv4().String()+c.port)
		if !r.OK() {
			t.Fatalf("open %s: %v", c.proto, r)
		}
		first, second := conn.Exchange(), conn.Exchange()
		if first.Backend != "server" || second.Backend != "server" || first.Seen != second.Seen {
			t.Errorf("%s: %v, then %v: want the same client seen twice", c.proto, first, second)
		}
		if r := conn.Send(); !r.OK() {
			t.Errorf("%s send: %v", c.proto, r)
		}
		if r := conn.Receive(); r.Backend != "server" {
			t.Errorf("%s receive: %v", c.proto, r)
		}
		if r := conn.Close(); !r.OK() {
			t.Errorf("%s close: %v", c.proto, r)
		}
		if r := conn.Exchange(); r.Problem == "" {
			t.Errorf("%s after close: %v, want a problem", c.proto, r)
		}
	}
}

func TestFixedSourcePortIsSeenByTheServer(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp:80", "udp:80")
	for _, proto := range []string{"tcp", "udp", "tcp"} { // tcp twice: the port is free again at once
		r := client.Dial(proto, server.IPv4().String()+":80", world.From("0.0.0.0:4711"))
		if r.Seen.Port() != 4711 {
			t.Errorf("%s: %v, want port 4711 seen", proto, r)
		}
	}
}

func TestBindTellsWhetherAnAddressIsTaken(t *testing.T) {
	t.Parallel()
	client, _ := pair(t, "tcp:80")
	held, r := client.Hold("udp", "0.0.0.0:5353")
	if !r.OK() {
		t.Fatalf("hold: %v", r)
	}
	if r := client.Bind("udp", "0.0.0.0:5353"); r.Stage != "bind" || r.Errno != syscall.EADDRINUSE {
		t.Errorf("bind while held: %v, want EADDRINUSE", r)
	}
	if r := held.Close(); !r.OK() {
		t.Errorf("close: %v", r)
	}
	if r := client.Bind("udp", "0.0.0.0:5353"); !r.OK() {
		t.Errorf("bind afterwards: %v", r)
	}
}

func TestHammerCountsAnswersAndFailures(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp:80", "http:8080", "udp:53")
	addr := server.IPv4().String()
	for _, target := range []struct{ proto, port string }{{"tcp", ":80"}, {"http", ":8080"}, {"udp", ":53"}} {
		report := world.Must(client.DialMany(target.proto, addr+target.port, 100))(t)
		if report.Total != 100 || report.Failed != 0 || report.Backends["server"] != 100 {
			t.Errorf("%s: %+v, want 100 answers of server", target.proto, report)
		}
	}
	hammer := world.Must(client.Hammer("tcp", addr+":81", world.HammerConfig{Workers: 3, Pause: time.Millisecond}))(t)
	world.Eventually(t, func() error {
		report, err := hammer.Report()
		if err == nil && report.Failed < 10 {
			return errFew
		}
		return err
	})
	report := world.Must(hammer.Stop())(t)
	if report.Failed != report.Total || len(report.Failures) != report.Total || len(report.Backends) != 0 {
		t.Fatalf("closed port: %+v, want failures only", report)
	}
	if f := report.Failures[0]; f.Stage != "connect" || f.Errno != syscall.ECONNREFUSED || f.Time.IsZero() {
		t.Errorf("first failure %v, want connect: ECONNREFUSED with its time", f)
	}
	again := world.Must(hammer.Report())(t)
	if again.Total != report.Total {
		t.Errorf("%d dials after Stop, want %d still", again.Total, report.Total)
	}
}

func TestHammeringOneAddressDoesNotExhaustPorts(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	server := world.Must(node.AddPod("server"))(t)
	world.Must(server.Serve("server", "tcp:80", "http:8080"))(t)
	pod := world.Must(node.AddPod("client"))(t)
	if err := pod.Do(func() error { return world.Sysctl("ipv4/ip_local_port_range", "40000 40049") }); err != nil {
		t.Fatal(err)
	}
	client := world.Must(pod.Probe())(t)
	for _, target := range []struct{ proto, port string }{{"tcp", ":80"}, {"http", ":8080"}} {
		report := world.Must(client.DialMany(target.proto, server.IPv4().String()+target.port, 500))(t)
		if report.Failed != 0 {
			t.Errorf("%s: %d of %d dials from 50 ports failed, the first: %v",
				target.proto, report.Failed, report.Total, report.Failures[0])
		}
	}
}

func TestDeadProbeIsAProblemNotAHang(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp:80")
	client.Close()
	r := client.Dial("tcp", server.IPv4().String()+":80")
	if !strings.Contains(r.Problem, "has ended") {
		t.Errorf("dial through a dead probe: %v, want that it has ended", r)
	}
}

func TestServerThatCannotListenSaysSo(t *testing.T) {
	t.Parallel()
	_, server := pair(t, "tcp:80")
	for spec, want := range map[string]string{
		"tcp:80":             "address already in use",
		"tcp:192.0.2.1:80":   "cannot assign requested address",
		"quic:80":            "unknown protocol",
		"80":                 "no port",
		"udp:not-an-address": "udp:not-an-address",
	} {
		_, err := server.Serve("second", spec)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("listen on %q: %v, want an error with %q", spec, err, want)
		}
	}
}
