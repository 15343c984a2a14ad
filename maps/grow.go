// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Sizes returns the capacities of the set's tables.
func (s *Set) Sizes() Sizes {
	return Sizes{
		Frontends4: s.Frontends4.MaxEntries(), Frontends6: s.Frontends6.MaxEntries(),
		FrontendState: s.FrontendState.Len(), Slots: s.Slots.Len(),
		Backends4: s.Backends4.Len(), Backends6: s.Backends6.Len(),
		FilterBits: s.VIPFilter.Len() * 64,
		NodeAddrs4: s.NodeAddrs4.MaxEntries(), NodeAddrs6: s.NodeAddrs6.MaxEntries(),
		ServiceNames: s.ServiceNames.MaxEntries(),
	}
}

// Grow returns a set in which the tables that want another capacity are new
// and hold what the old ones hold; all others are shared. vip_filter is the
// exception: its bits depend on its size, so a new one is empty.
//
// Nobody may write while it runs. The old set stays valid: programs go on
// reading it until they are switched.
func (s *Set) Grow(want Sizes) (*Set, error) {
	specs, err := Specs(want)
	if err != nil {
		return nil, err
	}
	have, sizes := s.Sizes().byName(), want.byName()
	all := make(map[string]*ebpf.Map)
	for name, old := range s.all {
		var m *ebpf.Map
		if n := sizes[name]; n != 0 && n != have[name] {
			m, err = ebpf.NewMap(specs[name])
		} else {
			m, err = old.Clone()
		}
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("grow table %s to %d entries: %w", name, specs[name].MaxEntries, err)
		}
		all[name] = m
	}
	grown, err := newSet(all, true)
	if err != nil {
		return nil, err
	}
	if err := grown.copyFrom(s, have, sizes); err != nil {
		grown.Close()
		return nil, err
	}
	return grown, nil
}

func (s *Set) copyFrom(old *Set, have, want map[string]uint32) error {
	differs := func(name string) bool { return want[name] != 0 && want[name] != have[name] }
	var errs []error
	copies := map[string]func(){
		Frontends4:    func() { errs = append(errs, s.Frontends4.copyFrom(old.Frontends4)) },
		Frontends6:    func() { errs = append(errs, s.Frontends6.copyFrom(old.Frontends6)) },
		NodeAddrs4:    func() { errs = append(errs, s.NodeAddrs4.copyFrom(old.NodeAddrs4)) },
		NodeAddrs6:    func() { errs = append(errs, s.NodeAddrs6.copyFrom(old.NodeAddrs6)) },
		ServiceNames:  func() { errs = append(errs, s.ServiceNames.copyFrom(old.ServiceNames)) },
		FrontendState: func() { s.FrontendState.copyFrom(old.FrontendState) },
		Slots:         func() { s.Slots.copyFrom(old.Slots) },
		Backends4:     func() { s.Backends4.copyFrom(old.Backends4) },
		Backends6:     func() { s.Backends6.copyFrom(old.Backends6) },
	}
	for name, copyTable := range copies {
		if differs(name) {
			copyTable()
		}
	}
	return errors.Join(errs...)
}
