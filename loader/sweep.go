// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
)

// SweepReport is what a sweep found and did. A flow has two entries.
type SweepReport struct {
	Entries uint32 `json:"entries"`
	Removed uint32 `json:"removed"`
}

// Sweep removes flows that were idle for longer than their state allows. The
// tables are walked in the kernel. It may run beside everything else.
func (l *Loader) Sweep() (SweepReport, error) {
	l.sweepLock.Lock()
	defer l.sweepLock.Unlock()
	if l.sweep == nil {
		return SweepReport{}, nil
	}
	var report bpf.LbSweepReport
	opts := ebpf.RunOptions{Context: &report, ContextOut: &report}
	if _, err := l.sweep.Run(&opts); err != nil {
		return SweepReport{}, fmt.Errorf("sweep flows: %w", err)
	}
	return SweepReport{Entries: report.Flows, Removed: report.Removed}, nil
}

func (l *Loader) loadSweep(set *maps.Set) (*ebpf.Program, error) {
	spec, err := bpf.LoadSweep()
	if err != nil {
		return nil, fmt.Errorf("read sweep program: %w", err)
	}
	programs, err := l.loadAgainst(spec, set)
	return programs["portolan_sweep"], err
}

func (l *Loader) switchSweep(fresh *ebpf.Program) {
	l.sweepLock.Lock()
	defer l.sweepLock.Unlock()
	if l.sweep != nil {
		l.sweep.Close()
	}
	l.sweep = fresh
}
