// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
)

// applyWire makes the tables of the wire programs say what is true of this
// node. A seed and a route generation that an earlier agent chose are kept:
// flows depend on both.
func (r *Reconciler) applyWire(n *Node) error {
	config := r.set.WireConfig.At(0)
	if config.RouteGeneration == 0 {
		r.set.WireConfig.Store32(0, maps.WireConfigRoutes, 1)
	}
	if config.HashSeed == 0 {
		config.HashSeed = rand.Uint32() | 1
	}
	config.MasqueradeMin = n.Masquerade.First
	config.MasqueradeCount = 0
	if n.Masquerade.First != 0 {
		config.MasqueradeCount = n.Masquerade.Last - n.Masquerade.First + 1
	}
	return errors.Join(r.applyInside(n.InsideCIDRs), r.applyDevices(n.Devices))
}

func (r *Reconciler) applyInside(want []netip.Prefix) error {
	config := r.set.WireConfig.At(0)
	active := config.ActiveInside & 1
	fresh := cidrSet(want)
	if fresh == config.Inside[active] {
		return nil
	}
	if err := r.quiesce(); err != nil {
		return err
	}
	config.Inside[1-active] = fresh
	r.set.WireConfig.Store32(0, maps.WireConfigInside, 1-active)
	return nil
}

// applyDevices compares with the table itself, which is small.
func (r *Reconciler) applyDevices(devices []Device) error {
	want := make(map[uint32]bpf.LbDevice, len(devices))
	for i := range devices {
		want[devices[i].Index] = devices[i].entry()
	}
	changed := false
	var errs []error
	var err error
	for index, have := range r.set.Devices.All(&err) {
		switch entry, ok := want[index]; {
		case !ok:
			changed = true
			errs = append(errs, r.set.Devices.Delete(index))
		case entry == have:
			delete(want, index)
		}
	}
	if err != nil {
		return fmt.Errorf("read devices: %w", err)
	}
	for index, entry := range want {
		errs = append(errs, r.set.Devices.Put(index, entry))
	}
	// Ways that were looked up since the routes changed know the devices as
	// they were.
	if changed || len(want) > 0 {
		r.nextRoutes()
	}
	return errors.Join(errs...)
}

func (d *Device) entry() bpf.LbDevice {
	var e bpf.LbDevice
	if d.XDPTarget {
		e.Flags |= maps.DeviceXDPTarget
	}
	if d.Inward {
		e.Flags |= maps.DeviceInward
	}
	if d.NoLinkHeader {
		e.Flags |= maps.DeviceNoLinkHeader
	}
	if d.Source4.IsValid() {
		e.Source4 = maps.Addr4(d.Source4)
	}
	if d.Source6.IsValid() {
		e.Source6 = maps.Addr16(d.Source6)
	}
	return e
}

// RoutesChanged makes the wire programs look up every way anew. It may be
// called at any time.
func (r *Reconciler) RoutesChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set != nil {
		r.nextRoutes()
	}
}

func (r *Reconciler) nextRoutes() {
	next := r.set.WireConfig.Load(0).RouteGeneration + 1
	if next == 0 {
		next = 1 // 0 means that a way was never looked up
	}
	r.set.WireConfig.Store32(0, maps.WireConfigRoutes, next)
}
