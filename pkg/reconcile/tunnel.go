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
// before anything names them.
func (t *transaction) stageEnds(p *port, c *compile.Port) error {
	for addr, pos := range endsOf(c) {
		id, _ := maps.SplitSlotWord(p.words[pos])
		have, ok := p.ends[addr]
		if ok && have == id {
			continue
		}
		if err := t.r.putEnd(p, addr, id, !ok); err != nil {
			return fmt.Errorf("write tunnel end %s (table %s holds %d): %w", addr, maps.TunnelEnds, t.r.set.TunnelEnds.MaxEntries(), err)
		}
	}
	return nil
}

// endsOf are the endpoints of this node that tunnels lead to, and where they
// stand among the backends.
func endsOf(c *compile.Port) map[netip.Addr]int32 {
	if !c.Direct {
		return nil
	}
	ends := map[netip.Addr]int32{}
	for pos := range int32(c.Positions()) {
		b := c.Backend(pos)
		if b.State == 0 || !b.OnNode {
			continue
		}
		// An address that serves on two ports is one end. Either would do, but
		// positions come in any order, and a new agent has to choose the same.
		lowest, known := ends[b.Addr.Addr()]
		if !known || b.Addr.Port() < c.Backend(lowest).Addr.Port() {
			ends[b.Addr.Addr()] = pos
		}
	}
	return ends
}

// dropEnds has those removed that are not wanted any more, once no word leads
// there.
func (t *transaction) dropEnds(p *port, c *compile.Port) {
	if len(p.ends) == 0 {
		return
	}
	want := endsOf(c)
	for addr := range p.ends {
		if _, wanted := want[addr]; !wanted {
			t.removeEnd(p, addr)
			delete(p.ends, addr)
		}
	}
}

// putEnd writes an end; a fresh one is counted at its address, for the first
// of which there is an entry that stands for them all.
func (r *Reconciler) putEnd(p *port, addr netip.Addr, id uint32, fresh bool) error {
	if err := r.storeEnd(addr, p.id, id); err != nil {
		return err
	}
	if fresh && r.ends[addr] == 0 {
		if err := r.storeEnd(addr, 0, 0); err != nil {
			return errors.Join(err, r.set.TunnelEnds.Delete(maps.TunnelEndKey(addr, p.id)))
		}
	}
	if fresh {
		r.ends[addr]++
	}
	if p.ends == nil {
		p.ends = map[netip.Addr]uint32{}
	}
	p.ends[addr] = id
	return nil
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
