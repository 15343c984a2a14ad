// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"net/netip"
	"slices"
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
		for _, addr := range published {
			for _, proto := range []string{"tcp", "udp"} {
				s.exhaust(proto, addr, ports)
			}
		}
		refused := false
		for key := range world.Must(s.here.reconciler.Tables().Refusals.Entries())(t) {
			refused = refused || key.Reason == uint32(bpf.LbReasonREASON_MASQUERADE_PORTS) && key.Backend != ^uint32(0)
		}
		if !refused {
			t.Error("the refusal does not name the backend")
		}
	})
}

// published is one address of the Service in each family.
var published = []string{"203.0.113.10:80", "[2001:db8:1b::10]:80"}

// exhaust takes all ports that there are towards the endpoint, and wants one
// flow more to be refused.
func (s *stage) exhaust(proto, addr string, ports int) {
	s.t.Helper()
	var held []*world.Conn
	for try := 0; len(held) < ports; try++ {
		c, r := s.client.Open(proto, addr)
		for range 3 { // a datagram and its answer alone would not hold a port
			if r.Err() == nil {
				r = c.Exchange()
			}
		}
		if r.Err() == nil {
			held = append(held, c)
			continue
		}
		c.Close()
		// A port may not be found among the 32 that are tried, which is counted:
		// with one of four left, once in 10,000 times.
		if s.count("masquerade-ports") == 0 || try == 2*ports {
			s.t.Fatalf("%s %s, flow %d, try %d: %v", proto, addr, len(held), try, r)
		}
	}
	before := s.count("masquerade-ports")
	if r := s.client.Dial(proto, addr, world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
		s.t.Errorf("%s %s, one more: %v, want silence", proto, addr, r)
	}
	if s.count("masquerade-ports") == before {
		s.t.Errorf("%s %s, one more: it was not counted", proto, addr)
	}
	for i, c := range held {
		if r := c.Exchange(); r.Err() != nil {
			s.t.Errorf("%s %s, flow %d, which had a port: %v", proto, addr, i, r)
		}
		c.Close()
	}
}

// A datagram and its answer, or a connection that was closed, hold a port for
// seconds only if others need it: a busy name server or a web server that keeps
// no connections, behind one endpoint, must not run out of them.
func TestPortsOfSilentFlowsAreUsedAgain(t *testing.T) {
	t.Run("udp", func(t *testing.T) { portsAreUsedAgain(t, "udp") })
	t.Run("tcp", func(t *testing.T) { portsAreUsedAgain(t, "tcp") })
}

func portsAreUsedAgain(t *testing.T, proto string) {
	both(t, func(t *testing.T, s *stage) {
		const ports = 32
		s.masqueradeBy(reconcile.PortRange{First: 50000, Last: 50000 + ports - 1})
		s.serve(webService(), s.far[0])
		for _, addr := range published {
			dial := func(flows int) (failed int, err error) {
				report, err := s.client.DialMany(proto, addr, flows, world.Timeout(impatient))
				return report.Failed, err
			}
			before, tries := s.count("masquerade-ports"), 0
			for s.count("masquerade-ports") == before { // until all are taken
				if _, err := dial(ports); err != nil {
					t.Fatal(err)
				}
				if tries++; tries == 4 {
					t.Fatalf("%s: %d flows one after the other were served by %d ports", addr, tries*ports, ports)
				}
			}
			err := world.Wait(15*short, func() error {
				failed, err := dial(ports / 2)
				if err == nil && failed > 0 {
					err = fmt.Errorf("%s: %d of %d flows found no port", addr, failed, ports/2)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// When the table of flows is full newcomers are served as newcomers, and nobody
// who is established goes.
func TestNewcomersAreServedWhenTheFlowTableIsFull(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		s.serve(webService(), s.near[0], s.far[0])
		var held []*world.Conn
		for i := range 8 {
			c, r := s.client.Open("tcp", published[i%2])
			if r.Err() != nil {
				t.Fatal(r)
			}
			held = append(held, c)
		}
		fill(t, s.here.reconciler.Tables().Map(maps.Flows4), func(i uint32) bpf.LbFlow4Key {
			return bpf.LbFlow4Key{Src: i, Dst: 0x0100007f, Proto: 6}
		}, bpf.LbFlow4{})
		fill(t, s.here.reconciler.Tables().Map(maps.Flows6), func(i uint32) bpf.LbFlow6Key {
			return bpf.LbFlow6Key{Src: bpf.LbAddress{W: [4]uint32{i}}, Proto: 6}
		}, bpf.LbFlow6{})
		for _, addr := range published {
			before := s.count("flow-table-full")
			for _, proto := range []string{"tcp", "udp"} {
				report := world.Must(s.client.DialMany(proto, addr, 40))(t)
				if report.Failed > 0 || len(report.Backends) != 2 {
					t.Errorf("%s %s: %d failed, answers %v, first failure %+v", proto, addr, report.Failed, report.Backends, report.Failures)
				}
			}
			if s.count("flow-table-full") == before {
				t.Errorf("%s: a full table is not counted", addr)
			}
		}
		for i, c := range held {
			if r := c.Exchange(); r.Err() != nil {
				t.Errorf("connection %d from before: %v", i, r)
			}
		}
	})
}

// fill puts flows that nobody has into a table until it takes no more.
func fill[K, V any](t *testing.T, m *ebpf.Map, key func(uint32) K, flow V) {
	t.Helper()
	const step = 4096
	keys, values := make([]K, step), slices.Repeat([]V{flow}, step)
	for at := uint32(0); ; at += step {
		for i := range keys {
			keys[i] = key(at + uint32(i))
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
