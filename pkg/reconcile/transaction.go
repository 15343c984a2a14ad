// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/service"
)

// transaction gathers what a batch of changes does to the hash tables, and
// what it frees, so that both happen in order and with few system calls.
type transaction struct {
	r *Reconciler

	entries            // to be inserted
	early   *insertion // the latest that is under way or has ended; nil: none

	orphans []*frontend // lost their port; removed unless another took them
	gone    []*port
	dead    []deadBackend
	spans   []span
	later   []func() error // what goes once no word leads there any more
}

type deadBackend struct {
	family service.Family
	id     uint32
}

// entries are of the hash tables, in the order in which they are inserted.
type entries struct {
	names      []uint32
	nameValues []bpf.LbServiceName
	keys4      []bpf.LbFrontend4Key
	values4    []uint32
	keys6      []bpf.LbFrontend6Key
	values6    []uint32
}

func (e *entries) len() int { return len(e.names) + len(e.keys4) + len(e.keys6) }

func (e *entries) empty() {
	e.names, e.nameValues = e.names[:0], e.nameValues[:0]
	e.keys4, e.values4 = e.keys4[:0], e.values4[:0]
	e.keys6, e.values6 = e.keys6[:0], e.values6[:0]
}

func (e *entries) put(set *maps.Set) error {
	return errors.Join(
		set.ServiceNames.PutAll(e.names, e.nameValues),
		set.Frontends4.PutAll(e.keys4, e.values4),
		set.Frontends6.PutAll(e.keys6, e.values6))
}

// insertion is the system calls that are made beside staging, and what all of
// them ended with.
type insertion struct {
	entries
	failed error
}

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
	t.empty()
	t.r.inserting.Go(func() { early.failed = errors.Join(early.failed, early.put(set)) })
}

// commit inserts and removes entries in the order that keeps every reader
// right: names, frontends; then the other way round for what goes.
func (t *transaction) commit() error {
	r := t.r
	r.inserting.Wait()
	errs := []error{t.relieve(), t.put(r.set)}
	if t.early != nil {
		errs = append(errs, t.early.failed)
	}
	for _, f := range t.orphans {
		if f.port == nil && f.registered {
			errs = append(errs, r.removeFrontend(f))
		}
	}
	for _, f := range t.later {
		errs = append(errs, f())
	}
	for _, p := range t.gone {
		errs = append(errs, r.set.ServiceNames.Delete(p.id))
		r.retire(retiree{kind: portID, id: p.id})
	}
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
	return errors.Join(errs...)
}
