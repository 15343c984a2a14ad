// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/service"
)

// transaction gathers what a batch of changes inserts into tables that are looked
// up by key, and what it frees, so that both happen in order and with few system calls.
type transaction struct {
	r *Reconciler

	entries            // to be inserted
	early   *insertion // the latest that is under way or has ended; nil: none

	orphans []*frontend // lost their port; removed unless another took them
	gone    []*port
	freed
	later []func() error // what goes once no word leads there any more
}

// freed is what slots or words name that are published, and no staged ones do.
type freed struct {
	dead  []deadBackend
	spans []span
}

type deadBackend struct {
	family service.Family
	id     uint32
}

func (f *freed) join(more freed) {
	f.dead = append(f.dead, more.dead...)
	f.spans = append(f.spans, more.spans...)
}

// since takes back what was added since f was as it was.
func (f *freed) since(was freed) freed {
	var more freed
	more.join(freed{f.dead[len(was.dead):], f.spans[len(was.spans):]})
	*f = was
	return more
}

// entries are of the tables that are looked up by key, in the order in which they
// are inserted.
type entries struct {
	names      []uint32
	nameValues []bpf.LbServiceName
	keys4      []bpf.LbFrontend4Key
	values4    []uint32
	keys6      []bpf.LbFrontend6Key
	values6    []uint32
}

func (e *entries) len() int { return len(e.names) + len(e.keys4) + len(e.keys6) }

// put inserts the entries. It leaves those for which a table has no place.
func (e *entries) put(set *maps.Set) error {
	err := set.ServiceNames.PutAll(e.names, e.nameValues)
	e.names, e.nameValues = e.names[:0], e.nameValues[:0]
	e.keys4, e.values4 = set.Frontends4.PutAll(e.keys4, e.values4)
	e.keys6, e.values6 = set.Frontends6.PutAll(e.keys6, e.values6)
	return err
}

// add takes over the frontends that another put has left.
func (e *entries) add(left *entries) {
	e.keys4, e.values4 = append(e.keys4, left.keys4...), append(e.values4, left.values4...)
	e.keys6, e.values6 = append(e.keys6, left.keys6...), append(e.values6, left.values6...)
}

// insertion is the system calls that are made beside staging, and what all of
// them ended with.
type insertion struct {
	entries
	failed error
}

// maxCrowded is how many larger tables are tried for one batch. The chance that
// one does not do is some millionths.
const maxCrowded = 4

// enough is the number of gathered entries that are worth a goroutine.
const enough = 4096

// insertEarly inserts what a large batch has gathered so far, beside the
// staging of the rest: the kernel takes about as long for the entries of a
// service port as staging it. All that they lead to is written already. What
// does not fit is left to commit.
func (t *transaction) insertEarly() {
	if t.len() < enough || len(t.crowded()) > 0 {
		return
	}
	t.r.inserting.Wait()
	if t.early == nil {
		t.early = &insertion{}
	}
	early, set := t.early, t.r.set
	t.entries, early.entries = early.entries, t.entries
	t.r.inserting.Go(func() { early.failed = errors.Join(early.failed, early.put(set)) })
}

// putAll inserts what is gathered. A frontends table that has room but no place
// for an entry is replaced by a larger one, whose hash is another.
func (t *transaction) putAll() error {
	err := t.put(t.r.set)
	for try := 0; len(t.keys4)+len(t.keys6) > 0; try++ {
		if try == maxCrowded {
			return errors.Join(err, fmt.Errorf("insert %d frontends: %w", len(t.keys4)+len(t.keys6), maps.ErrCrowded))
		}
		want := t.r.set.Sizes()
		if len(t.keys4) > 0 {
			want.Frontends4 *= 2
			t.r.resized[maps.Frontends4]++
		} else {
			want.Frontends6 *= 2
			t.r.resized[maps.Frontends6]++
		}
		if failed := t.r.growTo(want); failed != nil {
			return errors.Join(err, failed)
		}
		err = errors.Join(err, t.put(t.r.set))
	}
	return err
}

// commit inserts and removes entries in the order that keeps every reader
// right: names, frontends; then the other way round for what goes. What one could
// not do is done by the next.
func (t *transaction) commit() error {
	r := t.r
	r.inserting.Wait()
	errs := []error{t.relieve()}
	if t.early != nil {
		t.add(&t.early.entries)
		errs = append(errs, t.early.failed)
	}
	if r.torn {
		t.insertAll()
	}
	errs = append(errs, t.putAll())
	for _, f := range t.orphans {
		if f.port == nil && f.registered {
			r.removeFrontend(f)
		}
	}
	for _, f := range t.later {
		errs = append(errs, f())
	}
	for _, p := range t.gone {
		errs = append(errs, r.set.ServiceNames.Delete(p.id))
		r.retire(retiree{kind: portID, id: p.id})
	}
	if r.torn {
		errs = append(errs, r.removeStrays())
	}
	err := errors.Join(errs...)
	r.torn = err != nil
	for _, d := range t.dead {
		r.killBackend(d)
	}
	for _, s := range t.spans {
		r.retire(retiree{kind: slotSpan, span: s})
	}
	if len(r.retired) > 0 {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return err
}
