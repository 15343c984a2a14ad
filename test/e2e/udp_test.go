// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"net/netip"
	"syscall"
	"testing"

	"portolan.dev/portolan/pkg/service"
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
	s := newStage(t)
	s.serve(webService(), s.pods[0])
	stale, r := s.client.Open("udp", "10.96.0.10:80")
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	direct, r := s.client.Open("udp", netip.AddrPortFrom(s.pods[0].IPv4(), 8080).String())
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	closed := func() int {
		n, err := s.loader.CloseStaleUDP(s.clientPod.Namespace.Path())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := closed(); n != 0 {
		t.Errorf("%d sockets closed while their backend serves", n)
	}
	s.serve(webService())
	if n := closed(); n != 0 {
		t.Errorf("%d sockets closed while there is nowhere to go", n)
	}
	s.serve(webService(), s.pods[1])
	fresh, r := s.client.Open("udp", "10.96.0.10:80")
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	if n := closed(); n != 1 {
		t.Errorf("%d sockets closed, want 1", n)
	}
	if got := stale.Exchange(); got.Errno != syscall.ECONNABORTED && got.Err() == nil {
		t.Errorf("the stale socket answers %q", got.Backend)
	}
	if got := direct.Exchange(); got.Backend != "p1" {
		t.Errorf("a socket connected to the pod itself: %v", got.Err())
	}
	if got := fresh.Exchange(); got.Backend != "p2" {
		t.Errorf("a socket of the new backend: %v", got.Err())
	}
}
