// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"iter"

	"github.com/cilium/ebpf"
)

// batch is the number of entries moved by one system call.
const batch = 4096

// Hash is a typed view of a hash-like table. Methods may be called at any
// time from any goroutine; each entry changes atomically.
type Hash[K comparable, V any] struct {
	m *ebpf.Map
}

// Put inserts or replaces an entry.
func (h Hash[K, V]) Put(key K, value V) error { return h.m.Put(&key, &value) }

// PutAll inserts or replaces entries, many with a system call.
func (h Hash[K, V]) PutAll(keys []K, values []V) error {
	for start := 0; start < len(keys); start += batch {
		end := min(start+batch, len(keys))
		n, err := h.m.BatchUpdate(keys[start:end], values[start:end], nil)
		if err != nil {
			return fmt.Errorf("put entry %d of %d: %w", start+n, len(keys), err)
		}
	}
	return nil
}

// Get returns the value of a key; false when there is none.
func (h Hash[K, V]) Get(key K) (V, bool, error) {
	var value V
	err := h.m.Lookup(&key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return value, false, nil
	}
	return value, err == nil, err
}

// Delete removes a key; that it is not there is no error.
func (h Hash[K, V]) Delete(key K) error {
	if err := h.m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// DeleteAll removes keys; missing ones are no error.
func (h Hash[K, V]) DeleteAll(keys []K) error {
	for _, key := range keys {
		if err := h.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

// All yields every entry, read many with a system call. Entries that come or
// go meanwhile may be missed. A failure ends the sequence and is left in *err.
func (h Hash[K, V]) All(err *error) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		var cursor ebpf.MapBatchCursor
		keys, values := make([]K, batch), make([]V, batch)
		for {
			n, e := h.m.BatchLookup(&cursor, keys, values, nil)
			for i := range n {
				if !yield(keys[i], values[i]) {
					return
				}
			}
			if errors.Is(e, ebpf.ErrKeyNotExist) {
				return
			}
			if e != nil {
				*err = fmt.Errorf("read table: %w", e)
				return
			}
		}
	}
}

// Entries reads the whole table.
func (h Hash[K, V]) Entries() (map[K]V, error) {
	var err error
	out := make(map[K]V)
	for k, v := range h.All(&err) {
		out[k] = v
	}
	return out, err
}

// MaxEntries is the table's capacity.
func (h Hash[K, V]) MaxEntries() uint32 { return h.m.MaxEntries() }

// copyFrom inserts all entries of another table.
func (h Hash[K, V]) copyFrom(o Hash[K, V]) error {
	var err error
	keys, values := []K(nil), []V(nil)
	for k, v := range o.All(&err) {
		keys, values = append(keys, k), append(values, v)
	}
	if err != nil {
		return err
	}
	return h.PutAll(keys, values)
}
