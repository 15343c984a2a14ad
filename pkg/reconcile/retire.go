// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"

	"portolan.dev/portolan/maps"
)

// kindOf says what a retiree is.
type kindOf uint8

const (
	portID kindOf = iota
	frontendID
	backend4ID
	backend6ID
	slotSpan
	entry4
	entry6
)

// retiree is something that was reachable and waits for the grace period.
type retiree struct {
	kind  kindOf
	id    uint32
	span  span
	place maps.Removed
}

func (r *Reconciler) retire(x retiree) { r.retired = append(r.retired, x) }

// Recycle gives what was freed back for use, one grace period later, until ctx
// ends. It runs in a goroutine of its own, so that no change waits for it.
func (r *Reconciler) Recycle(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		r.mu.Lock()
		waiting := r.retired
		r.retired = nil
		r.mu.Unlock()
		if err := r.cfg.Wait(); err != nil {
			return fmt.Errorf("recycle freed entries: %w", err)
		}
		r.mu.Lock()
		r.giveBack(waiting)
		r.mu.Unlock()
	}
}

func (r *Reconciler) giveBack(waiting []retiree) {
	for _, x := range waiting {
		switch x.kind {
		case portID:
			r.portIDs.give(x.id)
		case frontendID:
			r.frontendIDs.give(x.id)
		case backend4ID:
			r.backends4.give(x.id)
		case backend6ID:
			r.backends6.give(x.id)
		case slotSpan:
			r.slots.give(x.span)
		case entry4:
			r.set.Frontends4.Release(x.place)
		case entry6:
			r.set.Frontends6.Release(x.place)
		}
	}
}

// RecycleNow gives back at once what is freed, after one grace period.
func (r *Reconciler) RecycleNow() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.recycleNow()
}

// recycleNow is Recycle for a change that cannot do without.
func (r *Reconciler) recycleNow() error {
	if err := r.cfg.Wait(); err != nil {
		return fmt.Errorf("recycle freed entries: %w", err)
	}
	// Places in the frontends tables are given back by whoever alone writes there.
	r.inserting.Wait()
	r.giveBack(r.retired)
	r.retired = nil
	return nil
}

// take hands out an id; when none is left it waits for freed ones, and grows
// the table when that does not help.
func (r *Reconciler) take(a *ids, table string) (uint32, error) {
	if id, ok := a.take(); ok {
		return id, nil
	}
	if len(r.retired) > 0 {
		r.cramped[table] = true
		if err := r.recycleNow(); err != nil {
			return 0, err
		}
		if id, ok := a.take(); ok {
			return id, nil
		}
	}
	if err := r.grow(table, a.limit*2); err != nil {
		return 0, err
	}
	id, ok := a.take()
	if !ok {
		return 0, fmt.Errorf("table %s is full at %d entries", table, a.limit)
	}
	return id, nil
}

func (r *Reconciler) takeSpan(count uint32) (span, error) {
	if count > maps.MaxRange {
		return span{}, fmt.Errorf("%d backends do not fit a range of %d", count, maps.MaxRange)
	}
	if s, ok := r.slots.take(count); ok {
		return s, nil
	}
	if len(r.retired) > 0 {
		r.cramped[maps.Slots] = true
		if err := r.recycleNow(); err != nil {
			return span{}, err
		}
		if s, ok := r.slots.take(count); ok {
			return s, nil
		}
	}
	if err := r.grow(maps.Slots, max(r.slots.limit*2, r.slots.limit+count*2)); err != nil {
		return span{}, err
	}
	s, ok := r.slots.take(count)
	if !ok {
		return span{}, fmt.Errorf("table %s is full at %d entries", maps.Slots, r.slots.limit)
	}
	return s, nil
}
