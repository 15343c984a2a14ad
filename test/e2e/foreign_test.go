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
	neighbour := world.Must(world.NewCounter(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, 1))(t)
	defer neighbour.Close()
	attach := func() link.Link {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: s.node.CgroupRoot(), Attach: ebpf.AttachCGroupInet4Connect, Program: neighbour.Program})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	after := attach()
	defer after.Close()
	s.serve(webService(), s.pods...)
	if r := s.client.Dial("tcp", "10.96.0.10:80"); r.Err() != nil {
		t.Errorf("with a neighbour after ours: %v", r.Err())
	}
	count := func() uint64 { return world.Must(neighbour.Count())(t) }
	if count() == 0 {
		t.Error("the neighbour after ours is not called")
	}
	// Ours is attached anew, which puts it behind.
	s.loader.Close()
	if _, err := loader.Cleanup(s.node.BPFFS(), false); err != nil {
		t.Fatal(err)
	}
	s.wire(loader.Config{})
	s.serve(webService(), s.pods...)
	before := count()
	if r := s.client.Dial("tcp", "10.96.0.10:80"); r.Err() != nil {
		t.Errorf("with a neighbour before ours: %v", r.Err())
	}
	if count() == before {
		t.Error("the neighbour before ours is not called")
	}
	if info, err := after.Info(); err != nil || info.Cgroup() == nil || info.Cgroup().CgroupId == 0 {
		t.Errorf("the neighbour's link after cleanup: %+v, %v", info, err)
	}
}
