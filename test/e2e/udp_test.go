// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

func TestAnUnconnectedSocketStaysWithItsBackendWhileThatServes(t *testing.T) {
	s := newStage(t)
	s.serve(webService(), s.pods...)
	conn, r := s.client.Open("udp", "10.96.0.10:80", world.Unconnected())
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	first := conn.Exchange().Backend
	for range 20 {
		if got := conn.Exchange(); got.Backend != first {
			t.Fatalf("answer from %q (%v), before from %q", got.Backend, got.Err(), first)
		}
	}
	// Terminating but serving: nobody new comes, who is there stays.
	draining := make([]service.Endpoint, len(s.pods))
	for i, p := range s.pods {
		draining[i] = ready(p)
		if first == []string{"p1", "p2", "p3"}[i] {
			draining[i].Ready, draining[i].Terminating = false, true
		}
	}
	s.serveEndpoints(webService(), s.pods, draining)
	if got := conn.Exchange(); got.Backend != first {
		t.Errorf("answer from %q while %s drains", got.Backend, first)
	}
	if got := s.names(s.client, "udp", "10.96.0.10:80", 40); got[first] > 0 {
		t.Errorf("new flows reach %s, which drains: %v", first, got)
	}
	// Gone: the next datagram goes elsewhere.
	var rest []*world.Pod
	for i, p := range s.pods {
		if first != []string{"p1", "p2", "p3"}[i] {
			rest = append(rest, p)
		}
	}
	s.serve(webService(), rest...)
	if got := conn.Exchange(); got.Err() != nil || got.Backend == first {
		t.Errorf("answer from %q (%v) after %s went", got.Backend, got.Err(), first)
	}
}

func TestAConnectedSocketOfAStoppedBackendIsClosed(t *testing.T) {
	t.Run("by bpf_sock_destroy where the kernel has it", func(t *testing.T) {
		want := loader.ClosedUDP{ByDiag: 1}
		if kernel.Has(t, kernel.SockDestroy) {
			want = loader.ClosedUDP{ByProgram: 1}
		}
		closesStaleSockets(t, newStage(t), want)
	})
	t.Run("by SOCK_DIAG", func(t *testing.T) {
		closesStaleSockets(t, newStageWith(t, loader.Config{WithoutSockDestroy: true}), loader.ClosedUDP{ByDiag: 1})
	})
}

func closesStaleSockets(t *testing.T, s *stage, want loader.ClosedUDP) {
	t.Helper()
	s.serve(webService(), s.pods[0])
	stale, r := s.client.Open("udp", "10.96.0.10:80")
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	direct, r := s.client.Open("udp", netip.AddrPortFrom(s.pods[0].IPv4(), 8080).String())
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	closed := func() loader.ClosedUDP {
		n, err := s.loader.CloseStaleUDP(s.clientPod.Namespace.Path())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := closed().Total(); n != 0 {
		t.Errorf("%d sockets closed while their backend serves", n)
	}
	s.serve(webService())
	if n := closed().Total(); n != 0 {
		t.Errorf("%d sockets closed while there is nowhere to go", n)
	}
	s.serve(webService(), s.pods[1])
	fresh, r := s.client.Open("udp", "10.96.0.10:80")
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	if got := closed(); got != want {
		t.Errorf("sockets closed: %+v, want %+v", got, want)
	}
	if got := stale.Receive(); got.Errno != syscall.ECONNABORTED {
		t.Errorf("who waits at the stale socket: %v, want ECONNABORTED", got)
	}
	if got := stale.Send(); got.Errno != syscall.EDESTADDRREQ {
		t.Errorf("who sends by the stale socket: %v, want EDESTADDRREQ", got)
	}
	if got := direct.Exchange(); got.Backend != "p1" {
		t.Errorf("a socket connected to the pod itself: %v", got.Err())
	}
	if got := fresh.Exchange(); got.Backend != "p2" {
		t.Errorf("a socket of the new backend: %v", got.Err())
	}
}

// An address that goes to another Service takes its datagrams along, although
// the endpoint they went to lives on in the Service that lost it.
func TestDatagramsFollowAnAddressToAnotherService(t *testing.T) {
	s := newStage(t)
	for _, vip := range []string{"10.96.0.10", "fd00:10:96::10"} {
		s.serve(webService(), s.pods[0])
		addr := netip.AddrPortFrom(netip.MustParseAddr(vip), 80).String()
		sending, r := s.client.Open("udp", addr, world.Unconnected())
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		connected, r := s.client.Open("udp", addr)
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		if got := sending.Exchange(); got.Backend != "p1" {
			t.Fatalf("%s: answer from %q (%v), want p1", vip, got.Backend, got.Err())
		}
		loser, heir := webService(), webService()
		loser.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.11"), netip.MustParseAddr("fd00:10:96::11")}
		heir.Name.Name = "heir"
		for i := range heir.Ports {
			heir.Ports[i].NodePort = 0
		}
		s.serve(loser, s.pods[0])
		s.serve(heir, s.pods[1])
		if got := sending.Exchange(); got.Backend != "p2" {
			t.Errorf("%s: answer from %q (%v), want p2", vip, got.Backend, got.Err())
		}
		closed, err := s.loader.CloseStaleUDP(s.clientPod.Namespace.Path())
		if n := closed.Total(); err != nil || n != 1 {
			t.Errorf("%s: %d sockets closed (%v), want the connected one", vip, n, err)
		}
		if got := connected.Exchange(); got.Err() == nil {
			t.Errorf("%s: the connected socket is answered by %s", vip, got.Backend)
		}
		sending.Close()
		connected.Close()
		s.apply(compile.Update{Services: map[service.Name]*service.Service{heir.Name: nil}})
	}
}

// Two VIPs in turn on one unconnected socket: each answer bears the name of the
// address that was asked, although both Services have the same pods, and each
// Service keeps its backend.
func TestOneSocketMayTalkToSeveralServices(t *testing.T) {
	s := newStage(t)
	s.serve(webService(), s.pods...)
	second := webService()
	second.Name.Name = "second"
	second.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:10:96::20")}
	for i := range second.Ports {
		second.Ports[i].NodePort = 0
	}
	s.serve(second, s.pods...)
	for _, vips := range []string{"10.96.0.10:80 10.96.0.20:80", "[fd00:10:96::10]:80 [fd00:10:96::20]:80"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), alternateEnv+"="+vips)
		process := world.Must(s.clientPod.StartCmd(cmd))(t)
		if err := process.Wait(20 * time.Second); err != nil {
			t.Errorf("%s: %v\n%s", vips, err, process.Output())
		}
	}
}

// alternateEnv makes the test binary ask the addresses it holds in turn.
const alternateEnv = "PORTOLAN_E2E_ALTERNATE"

// alternate asks several addresses in turn over one unconnected socket, and
// fails when an answer bears another name, or a backend changes.
func alternate(addrs string) error {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	answers := map[string]string{}
	buffer := make([]byte, 1500)
	for range 20 {
		for _, addr := range strings.Fields(addrs) {
			to := netip.MustParseAddrPort(addr)
			if _, err := conn.WriteToUDPAddrPort([]byte("who are you"), to); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(world.Scaled(5 * time.Second))); err != nil {
				return err
			}
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return err
			}
			if got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); got != to {
				return fmt.Errorf("asked %s, answered by %s", to, got)
			}
			if old := answers[addr]; old != "" && old != string(buffer[:n]) {
				return fmt.Errorf("%s answered %q, then %q", addr, old, buffer[:n])
			}
			answers[addr] = string(buffer[:n])
		}
	}
	all := strings.Fields(addrs)
	if answers[all[0]] == answers[all[1]] {
		return nil // three draws of three gave the same: then answers look alike
	}
	return together(conn, all)
}

// together asks the first address, the second and the first again before it
// reads an answer.
func together(conn *net.UDPConn, addrs []string) error {
	waiting := map[netip.AddrPort]int{}
	for _, addr := range []string{addrs[0], addrs[1], addrs[0]} {
		to := netip.MustParseAddrPort(addr)
		waiting[to]++
		if _, err := conn.WriteToUDPAddrPort([]byte("who are you"), to); err != nil {
			return err
		}
	}
	buffer := make([]byte, 1500)
	for range 3 {
		_, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if waiting[got]--; waiting[got] < 0 {
			return fmt.Errorf("asked %v at once, one answer too many came from %s", addrs, got)
		}
	}
	return nil
}
