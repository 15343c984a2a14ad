// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Counter is somebody else's program at a hook: it counts its calls and ends
// with a verdict.
type Counter struct {
	Program *ebpf.Program
	calls   *ebpf.Map
}

// NewCounter loads one, which the caller attaches, and closes.
func NewCounter(kind ebpf.ProgramType, attach ebpf.AttachType, verdict int32) (*Counter, error) {
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "neighbour", Type: kind, AttachType: attach, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, calls.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, verdict).WithSymbol("end"),
		asm.Return(),
	}})
	if err != nil {
		return nil, errors.Join(err, calls.Close())
	}
	return &Counter{program, calls}, nil
}

// Count is how often it was called.
func (c *Counter) Count() (n uint64, err error) {
	err = c.calls.Lookup(uint32(0), &n)
	return n, err
}

// Close gives the program up; where it is attached by a link, it stays.
func (c *Counter) Close() error { return errors.Join(c.Program.Close(), c.calls.Close()) }
