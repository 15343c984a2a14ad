// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2, and a kernel with SCTP.

package e2e_test

import (
	"syscall"
	"testing"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

// The kernel runs no cgroup program when an SCTP socket connects: such
// associations are translated on devices only. The day this fails is the day
// to serve them at the socket.
func TestSCTPSocketsAreNotSeenByTheSocketHook(t *testing.T) {
	kernel.Need(t, kernel.SCTP)
	s := newStage(t)
	world.Must(s.pods[0].Serve("p1", "sctp:8080"))(t)
	svc := webService()
	svc.Ports = []service.Port{{Name: "sctp", Protocol: service.SCTP, Port: 8080}}
	s.serve(svc, s.pods[0])
	if r := s.client.Dial("sctp", s.pods[0].IPv4().String()+":8080"); r.Backend != "p1" {
		t.Errorf("to the pod itself: %v", r.Err())
	}
	if r := s.client.Dial("sctp", "10.96.0.10:8080", world.Timeout(impatient)); r.Errno != syscall.ETIMEDOUT {
		t.Errorf("to the Service: %v, backend %q; want no answer", r.Err(), r.Backend)
	}
}
