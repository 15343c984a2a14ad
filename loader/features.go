// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is something of the kernel that Portolan uses.
type Feature struct {
	Name     string // "bpf_sock_destroy"
	Since    string // first mainline release that has it, "6.5"
	Purpose  string // what it is used for
	Required bool
	// Without says what happens on a kernel that lacks an optional feature.
	Without string
	probe   func() error
}

// Features lists everything that is probed for, required ones first.
func Features() []Feature {
	helper := func(t ebpf.ProgramType, f asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(t, f) }
	}
	return []Feature{
		{Name: "BTF", Since: "5.5", Purpose: "programs fit themselves to the running kernel", Required: true, probe: haveBTF},
		{Name: "mmapable arrays", Since: "5.5", Purpose: "tables are written without system calls", Required: true, probe: haveMmapable},
		{Name: "cgroup socket programs", Since: "4.17", Purpose: "Services are translated at the socket", Required: true,
			probe: func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }},
		{Name: "socket storage", Since: "5.8", Purpose: "a socket remembers the address it was given", Required: true, probe: helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet)},
		{Name: "namespace cookies", Since: "5.8", Purpose: "session affinity and loopback NodePorts", Required: true, probe: helper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)},
		{Name: "coarse clock", Since: "5.11", Purpose: "session affinity", Required: true, probe: helper(ebpf.CGroupSockAddr, asm.FnKtimeGetCoarseNs)},
		{Name: "errno from programs", Since: "5.18", Purpose: "refused connects say why", Required: true, probe: helper(ebpf.CGroupSockAddr, asm.FnSetRetval)},
		{Name: "bpf_sock_destroy", Since: "6.5", Purpose: "UDP sockets of stopped backends are closed", probe: haveKfunc("bpf_sock_destroy"),
			Without: "they are closed one by one through SOCK_DIAG"},
		{Name: "tc programs", Since: "4.1", Purpose: "traffic from the wire is translated", Required: true,
			probe: func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
		{Name: "tcx", Since: "6.6", Purpose: "programs are attached to devices by links", probe: haveTCX,
			Without: "they are attached as clsact filters"},
	}
}

// Probe tells whether the kernel has the feature: nil, an error that wraps
// ebpf.ErrNotSupported, or another error when it could not be found out.
func (f Feature) Probe() error { return f.probe() }

// MissingFeatures probes all required features and names those that are not
// there, each with the kernel release that brought it.
func MissingFeatures() error {
	var errs []error
	for _, f := range Features() {
		if !f.Required {
			continue
		}
		if err := f.Probe(); err != nil {
			errs = append(errs, fmt.Errorf("this kernel lacks %s (Linux %s; %s): %w", f.Name, f.Since, f.Purpose, err))
		}
	}
	return errors.Join(errs...)
}

func haveBTF() error {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}

func haveMmapable() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: 1 << 10})
	if err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return m.Close()
}

func haveKfunc(name string) func() error {
	return func() error {
		spec, err := btf.LoadKernelSpec()
		if err != nil {
			return err
		}
		var function *btf.Func
		if err := spec.TypeByName(name, &function); err != nil {
			return fmt.Errorf("%w: %s: %w", ebpf.ErrNotSupported, name, err)
		}
		return nil
	}
}

// haveTCX asks for the programs of the loopback device, which kernels without
// tcx refuse to tell.
func haveTCX() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopbackIndex, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	return err
}

// loopbackIndex is that of lo in every network namespace.
const loopbackIndex = 1
