// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"net/netip"
	"slices"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
)

// insertAll inserts every entry that there should be, for some are missing of
// which it is not known which.
func (t *transaction) insertAll() {
	for _, p := range t.r.ports {
		if p.named {
			t.names = append(t.names, p.id)
			t.nameValues = append(t.nameValues, nameOf(p.compiled, p.kind))
		}
	}
	for key, f := range t.r.frontends {
		if f.registered {
			t.insert(key.Addr, uint8(key.Protocol), f.id, false)
		}
	}
	for addr, u := range t.r.addresses {
		if owner, has := u.ownerValue(); has {
			t.insert(netip.AddrPortFrom(addr, 0), 0, owner, false)
		}
	}
}

// removeStrays deletes what nobody has any more, and could not be deleted when
// it went.
func (r *Reconciler) removeStrays() error {
	return errors.Join(r.removeStrayNames(), r.removeStraySources(), r.removeStrayEnds())
}

func (r *Reconciler) removeStrayNames() error {
	wanted := map[uint32]bool{}
	for _, p := range r.ports {
		wanted[p.id] = true
	}
	var err error
	var errs []error
	for id := range r.set.ServiceNames.All(&err) {
		if !wanted[id] {
			errs = append(errs, r.set.ServiceNames.Delete(id))
		}
	}
	return errors.Join(append(errs, err)...)
}

func (r *Reconciler) removeStrayEnds() error {
	wanted := map[bpf.LbTunnelEndKey]bool{}
	for _, p := range r.ports {
		for addr := range p.ends {
			wanted[maps.TunnelEndKey(addr, p.id)], wanted[maps.TunnelEndKey(addr, 0)] = true, true
		}
	}
	have, err := r.set.TunnelEnds.Entries()
	errs := []error{err}
	for key := range have {
		if !wanted[key] {
			errs = append(errs, r.set.TunnelEnds.Delete(key))
		}
	}
	return errors.Join(errs...)
}

// removeStraySources deletes source ranges that no service port has.
func (r *Reconciler) removeStraySources() error {
	wanted := map[uint32][]netip.Prefix{}
	for _, p := range r.ports {
		wanted[p.id] = p.sources
	}
	var err error
	var errs []error
	for k := range r.set.Sources4.All(&err) {
		prefix := netip.PrefixFrom(maps.FromAddr4(k.Addr), int(k.Prefixlen)-32)
		if !slices.Contains(wanted[k.ServicePort], prefix) {
			errs = append(errs, r.set.Sources4.Delete(k))
		}
	}
	for k := range r.set.Sources6.All(&err) {
		prefix := netip.PrefixFrom(maps.FromAddr16(k.Addr), int(k.Prefixlen)-32)
		if !slices.Contains(wanted[k.ServicePort], prefix) {
			errs = append(errs, r.set.Sources6.Delete(k))
		}
	}
	return errors.Join(append(errs, err)...)
}
