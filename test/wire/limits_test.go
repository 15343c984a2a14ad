// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

// masqueradeBy changes the range of a running node.
func (s *stage) masqueradeBy(ports reconcile.PortRange) {
	s.t.Helper()
	err := s.here.Do(func() error {
		return s.here.reconciler.ApplyNode(reconcile.Node{
			NodePortAddrs: map[netip.Addr]bool{s.here.IPv4(): false, s.here.IPv6(): false},
			Source4:       s.here.IPv4(), Source6: s.here.IPv6(), Masquerade: ports,
		})
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// When no port is left towards an endpoint newcomers are refused and counted,
// and those who have one keep it.
func TestFlowsGoOnWhenMasqueradePortsAreExhausted(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		const ports = 4
		s.masqueradeBy(reconcile.PortRange{First: 50000, Last: 50000 + ports - 1})
		s.serve(webService(), s.far[0])
		const addr = "203.0.113.10:80"
		var held []*world.Conn
		for len(held) < ports {
			c, r := s.client.Open("tcp", addr)
			if r.Err() != nil {
				// A port was not found among those tried: that is counted, too.
				if s.count("masquerade-ports") == 0 {
					t.Fatalf("connection %d: %v", len(held), r)
				}
				continue
			}
			held = append(held, c)
		}
		before := s.count("masquerade-ports")
		if r := s.client.Dial("tcp", addr, world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
			t.Errorf("one more: %v, want silence", r)
		}
		if s.count("masquerade-ports") == before {
			t.Error("it was not counted")
		}
		refused := false
		for key := range world.Must(s.here.reconciler.Tables().Refusals.Entries())(t) {
			refused = refused || key.Reason == uint32(bpf.LbReasonREASON_MASQUERADE_PORTS) && key.Backend != ^uint32(0)
		}
		if !refused {
			t.Error("the refusal does not name the backend")
		}
		for i, c := range held {
			if r := c.Exchange(); r.Err() != nil {
				t.Errorf("connection %d, which had a port: %v", i, r)
			}
		}
	})
}

// A datagram and its answer hold a port for seconds only if others need it: a
// busy name server behind one endpoint must not run out of them.
func TestPortsOfSilentFlowsAreUsedAgain(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		const ports = 32
		s.masqueradeBy(reconcile.PortRange{First: 50000, Last: 50000 + ports - 1})
		s.serve(webService(), s.far[0])
		const addr = "203.0.113.10:80"
		for s.count("masquerade-ports") == 0 { // until all are taken
			if _, err := s.client.DialMany("udp", addr, ports, world.Timeout(impatient)); err != nil {
				t.Fatal(err)
			}
		}
		err := world.Wait(15*short, func() error {
			report, err := s.client.DialMany("udp", addr, ports/2, world.Timeout(impatient))
			if err == nil && report.Failed > 0 {
				err = fmt.Errorf("%d of %d failed", report.Failed, report.Total)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// When the table of flows is full newcomers are served as newcomers, and nobody
// who is established goes.
func TestNewcomersAreServedWhenTheFlowTableIsFull(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0], s.far[0])
		var held []*world.Conn
		for range 4 {
			c, r := s.client.Open("tcp", "203.0.113.10:80")
			if r.Err() != nil {
				t.Fatal(r)
			}
			held = append(held, c)
		}
		fill(t, s.here.reconciler.Tables().Map(maps.Flows4))
		for _, proto := range []string{"tcp", "udp"} {
			report := world.Must(s.client.DialMany(proto, "203.0.113.10:80", 20))(t)
			if report.Failed > 0 || len(report.Backends) != 2 {
				t.Errorf("%s: %d failed, answers %v, first failure %+v", proto, report.Failed, report.Backends, report.Failures)
			}
		}
		if s.count("flow-table-full") == 0 {
			t.Error("a full table is not counted")
		}
		for i, c := range held {
			if r := c.Exchange(); r.Err() != nil {
				t.Errorf("connection %d from before: %v", i, r)
			}
		}
	})
}

// fill puts flows that nobody has into a table until it takes no more.
func fill(t *testing.T, m *ebpf.Map) {
	t.Helper()
	const step = 4096
	keys, values := make([]bpf.LbFlow4Key, step), make([]bpf.LbFlow4, step)
	for at := uint32(0); ; at += step {
		for i := range keys {
			keys[i] = bpf.LbFlow4Key{Src: at + uint32(i), Dst: 0x0100007f, Proto: 6}
		}
		n, err := m.BatchUpdate(keys, values, nil)
		if n < step {
			return
		}
		if err != nil || at > 1<<21 {
			t.Fatalf("fill the table: %d at %d, %v", n, at, err)
		}
	}
}

// An endpoint that has the Service's own port can be served without touching
// the checksum, which no helper can mend.
func TestSCTPIsServedWhereNoPortHasToChange(t *testing.T) {
	kernel.Need(t, kernel.SCTP)
	both(t, func(t *testing.T, s *stage) {
		near, far := s.near[0], s.far[0]
		for _, pod := range []*world.Pod{near, far} {
			world.Must(pod.Serve(pod.Name(), "sctp:8080"))(t)
		}
		svc := webService()
		svc.Ports = []service.Port{{Name: "sctp", Protocol: service.SCTP, Port: 8080}}
		for _, c := range []struct {
			forwarding service.Forwarding
			pod        *world.Pod
		}{{service.SNAT, near}, {service.SNAT, far}, {service.DSR, far}} {
			svc.Forwarding = c.forwarding
			s.serve(svc, c.pod)
			for _, addr := range []string{"203.0.113.10:8080", "[2001:db8:1b::10]:8080"} {
				if r := s.client.Dial("sctp", addr); r.Backend != c.pod.Name() {
					t.Errorf("%s by %v to %s: %v", addr, c.forwarding, c.pod.Name(), r)
				}
			}
		}
		svc.Ports[0].Port = 80
		s.serve(svc, near)
		if r := s.client.Dial("sctp", "203.0.113.10:80", world.Timeout(impatient)); r.Backend != "" {
			t.Errorf("with another port: %v", r)
		}
		if s.count("sctp-port") == 0 {
			t.Error("what cannot be served is not counted")
		}
	})
}
