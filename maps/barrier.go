// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Barrier waits until every program that is running now has ended. What was
// unreachable before may be used again afterwards.
//
// It rests on a promise of the kernel: an update of a map that holds maps
// returns only after an RCU grace period (maybe_wait_bpf_programs in
// kernel/bpf/syscall.c, since Linux 5.0), and programs run within one.
type Barrier struct {
	outer *ebpf.Map
	inner *ebpf.Map
}

// NewBarrier makes a barrier; Close it when done.
func NewBarrier() (*Barrier, error) {
	spec := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("create barrier: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec,
	})
	if err != nil {
		inner.Close()
		return nil, fmt.Errorf("create barrier: %w", err)
	}
	return &Barrier{outer: outer, inner: inner}, nil
}

// Wait takes one grace period, about 8 ms.
func (b *Barrier) Wait() error {
	if err := b.outer.Put(uint32(0), b.inner); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	return nil
}

// Close releases the barrier.
func (b *Barrier) Close() {
	b.outer.Close()
	b.inner.Close()
}
