// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"portolan.dev/portolan/loader"
)

// Other programs at the socket hooks, attached before and after ours, are
// still called, ours too, and cleanup leaves them where they are.
func TestNeighboursAtTheSocketHooksAreLeftAlone(t *testing.T) {
	s := newStage(t)
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, calls.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("end"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	attach := func() link.Link {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: s.node.CgroupRoot(), Attach: ebpf.AttachCGroupInet4Connect, Program: program})
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
	count := func() (n uint64) {
		if err := calls.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
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
