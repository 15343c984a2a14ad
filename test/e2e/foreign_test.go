// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/test/world"
)

// Other programs at the socket hooks, attached before and after ours, are
// still called, ours too, and cleanup leaves them where they are.
func TestNeighboursAtTheSocketHooksAreLeftAlone(t *testing.T) {
	s := newStage(t)
	unconnected := []world.Option{world.Unconnected()}
	hooks := []struct {
		at          ebpf.AttachType
		proto, addr string
		options     []world.Option
		neighbour   *world.Counter
		link        link.Link
	}{
		{at: ebpf.AttachCGroupInet4Connect, proto: "tcp", addr: "10.96.0.10:80"},
		{at: ebpf.AttachCGroupInet6Connect, proto: "tcp", addr: "[fd00:10:96::10]:80"},
		{at: ebpf.AttachCGroupUDP4Sendmsg, proto: "udp", addr: "10.96.0.10:80", options: unconnected},
		{at: ebpf.AttachCGroupUDP6Recvmsg, proto: "udp", addr: "[fd00:10:96::10]:80", options: unconnected},
	}
	for i := range hooks {
		h := &hooks[i]
		h.neighbour = world.Must(world.NewCounter(ebpf.CGroupSockAddr, h.at, 1))(t)
		t.Cleanup(func() { h.neighbour.Close() })
		h.link = world.Must(link.AttachCgroup(link.CgroupOptions{Path: s.node.CgroupRoot(), Attach: h.at, Program: h.neighbour.Program}))(t)
		t.Cleanup(func() { h.link.Close() })
	}
	dial := func(place string) {
		t.Helper()
		s.serve(webService(), s.pods...)
		for _, h := range hooks {
			before := world.Must(h.neighbour.Count())(t)
			r := s.client.Dial(h.proto, h.addr, h.options...)
			if r.Err() != nil || h.proto == "udp" && r.From.String() != h.addr {
				t.Errorf("%v, with a neighbour %s ours: %v, answered by %v", h.at, place, r.Err(), r.From)
			}
			if world.Must(h.neighbour.Count())(t) == before {
				t.Errorf("%v: the neighbour %s ours is not called", h.at, place)
			}
		}
	}
	dial("after")
	// Ours is attached anew, which puts it behind.
	s.loader.Close()
	if _, err := loader.Cleanup(s.node.BPFFS(), false); err != nil {
		t.Fatal(err)
	}
	s.wire(loader.Config{})
	dial("before")
	for _, h := range hooks {
		if info, err := h.link.Info(); err != nil || info.Cgroup() == nil || info.Cgroup().CgroupId == 0 {
			t.Errorf("%v: the neighbour's link after cleanup: %+v, %v", h.at, info, err)
		}
	}
}
