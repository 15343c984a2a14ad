// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
)

// stageEnds has other nodes' packets for this node's endpoints taken out of
// their tunnels, if the service port is served directly. New ends are written
// before anything names them; old ones go when no word leads there any more.
func (t *transaction) stageEnds(p *port, c *compile.Port) error {
	if !c.Direct && len(p.ends) == 0 {
		return nil
	}
	want := map[netip.Addr]uint32{}
	ports := map[netip.Addr]uint16{}
	for pos := range int32(c.Positions()) {
		b := c.Backend(pos)
		if !c.Direct || b.State == 0 || !b.OnNode {
			continue
		}
		// An address that serves on two ports is one end. Either would do, but
		// positions come in any order, and a new agent has to choose the same.
		addr := b.Addr.Addr()
		if lowest, known := ports[addr]; !known || b.Addr.Port() < lowest {
			ports[addr] = b.Addr.Port()
			want[addr], _ = maps.SplitSlotWord(p.words[pos])
		}
	}
	var errs []error
	for addr, id := range want {
		if have, ok := p.ends[addr]; !ok || have != id {
			errs = append(errs, t.putEnd(p, addr, id, !ok))
		}
	}
	for addr := range p.ends {
		if _, wanted := want[addr]; !wanted {
			t.removeEnd(p, addr)
		}
	}
	p.ends = want
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write tunnel ends (table %s holds %d): %w", maps.TunnelEnds, t.r.set.TunnelEnds.MaxEntries(), err)
	}
	return nil
}

func (t *transaction) putEnd(p *port, addr netip.Addr, id uint32, fresh bool) error {
	err := t.r.storeEnd(addr, p.id, id)
	if fresh {
		if t.r.ends[addr]++; t.r.ends[addr] == 1 {
			err = errors.Join(err, t.r.storeEnd(addr, 0, 0))
		}
	}
	return err
}

// storeEnd writes an entry unless an earlier agent left the same.
func (r *Reconciler) storeEnd(addr netip.Addr, port, id uint32) error {
	key := maps.TunnelEndKey(addr, port)
	if r.found != nil {
		have, ok := r.found.ends[key]
		delete(r.found.ends, key)
		if ok && have == id {
			return nil
		}
	}
	return r.set.TunnelEnds.Put(key, id)
}

func (t *transaction) removeEnd(p *port, addr netip.Addr) {
	t.later = append(t.later, func() error {
		err := t.r.set.TunnelEnds.Delete(maps.TunnelEndKey(addr, p.id))
		if t.r.ends[addr]--; t.r.ends[addr] == 0 {
			delete(t.r.ends, addr)
			err = errors.Join(err, t.r.set.TunnelEnds.Delete(maps.TunnelEndKey(addr, 0)))
		}
		return err
	})
}
