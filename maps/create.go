// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Draft is a set in the making: the tables whose size does not depend on what
// they will hold exist already. They take the kernel longer than all others,
// and nobody needs to know a single Service for them.
type Draft struct {
	specs map[string]*ebpf.MapSpec
	made  map[string]*ebpf.Map
}

// NewDraft makes those tables. A draft becomes a set by Create, or is closed.
func NewDraft() (*Draft, error) {
	specs, err := Specs(Sizes{})
	if err != nil {
		return nil, err
	}
	d := &Draft{specs: specs, made: make(map[string]*ebpf.Map)}
	sized := Sizes{}.byName()
	for name := range specs {
		if _, waits := sized[name]; waits {
			continue
		}
		if err := d.make(name); err != nil {
			d.Close()
			return nil, err
		}
	}
	return d, nil
}

func (d *Draft) make(name string) error {
	m, err := ebpf.NewMap(d.specs[name])
	if err != nil {
		return fmt.Errorf("create table %s of %d entries: %w", name, d.specs[name].MaxEntries, err)
	}
	d.made[name] = m
	return nil
}

// Create makes the rest of the tables, of the given sizes. The draft is used
// up, whether it succeeds or not.
func (d *Draft) Create(s Sizes) (*Set, error) {
	for name, n := range s.byName() {
		if n > 0 {
			d.specs[name].MaxEntries = elements(name, n)
		}
		if err := d.make(name); err != nil {
			d.Close()
			return nil, err
		}
	}
	set, err := newSet(d.made, true)
	if err != nil {
		return nil, err
	}
	set.NodeConfig.Store32(0, nodeConfigLayout, LayoutVersion)
	set.NodeConfig.Store32(0, NodeConfigPorts, NoNodePorts)
	return set, nil
}

// Close gives up a draft that is not wanted any more.
func (d *Draft) Close() { closeAll(d.made) }

// Create makes new, empty tables of the given sizes.
func Create(s Sizes) (*Set, error) {
	d, err := NewDraft()
	if err != nil {
		return nil, err
	}
	return d.Create(s)
}
