// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"iter"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
)

// ErrCrowded means that an entry finds no place in a frontends table, though
// there is room elsewhere in it. A larger table, which spreads its entries by
// another number, has one.
var ErrCrowded = errors.New("no place near the entry's home bucket")

const (
	bucketEntries = uint32(len(bpf.LbFrontend4Bucket{}.Tags))
	// probesMax is PROBES_MAX of bpf/include/types.h.
	probesMax = 8
	// entriesPerBucket is what a table is meant to hold: half of its places. At
	// four fifths of that, where tables grow, 98 of 100 entries stand in their
	// first bucket, and one of some hundred millions finds no place.
	entriesPerBucket = 2

	entryUsed    = uint64(bpf.LbEntryMarkENTRY_USED)
	entryRemoved = uint64(bpf.LbEntryMarkENTRY_REMOVED)
)

// Frontends is a frontends table: the agent's half of what is looked up in
// bpf/include/frontends.h, in mapped memory. K is the key's layout.
//
// An entry comes with one store, after everything that it leads to, and goes
// with one. The place of one that went may still be read by programs that had
// found it: it is used again when Release says that they have ended.
//
// Any number of goroutines may read. One at a time may write.
type Frontends[K comparable] struct {
	memory interface{ unmap() }
	words  []uint64
	layout *frontendLayout[K]

	multiplier uint64
	shift      int // 64 minus log2 of the number of buckets
}

// frontendLayout is what differs between the families. A bucket is words: the
// tags, what else belongs to each entry, and last the count of who passed.
type frontendLayout[K comparable] struct {
	bucket, passed uint32 // size, and where the count is, in words
	mark           int    // shift of enum entry_mark in the tag
	// hash and tag are a key's, for a value.
	hash func(key K, multiplier uint64) uint64
	tag  func(key K, value uint32) uint64
	// is tells whether the j-th entry of a bucket with that tag has that key.
	is func(bucket []uint64, j uint32, tag uint64, key K) bool
	// write stores what belongs to an entry, save its tag.
	write func(bucket []uint64, j uint32, key K, value uint32)
	read  func(bucket []uint64, j uint32, tag uint64) (K, uint32)
}

var layout4 = frontendLayout[bpf.LbFrontend4Key]{
	bucket: uint32(unsafe.Sizeof(bpf.LbFrontend4Bucket{})) / 8,
	passed: uint32(unsafe.Offsetof(bpf.LbFrontend4Bucket{}.Passed)) / 8,
	mark:   56,
	tag:    func(k bpf.LbFrontend4Key, _ uint32) uint64 { return tag4(k) },
	hash: func(k bpf.LbFrontend4Key, m uint64) uint64 {
		x := tag4(k) * m
		return (x ^ x>>32) * m
	},
	is: func(_ []uint64, _ uint32, tag uint64, k bpf.LbFrontend4Key) bool { return tag == tag4(k) },
	write: func(b []uint64, j uint32, _ bpf.LbFrontend4Key, value uint32) {
		atomic.StoreUint32(value4(b, j), value)
	},
	read: func(b []uint64, j uint32, tag uint64) (bpf.LbFrontend4Key, uint32) {
		return bpf.LbFrontend4Key{Addr: uint32(tag), Port: uint16(tag >> 32), Proto: uint8(tag >> 48)}, atomic.LoadUint32(value4(b, j))
	},
}

func tag4(k bpf.LbFrontend4Key) uint64 {
	return uint64(k.Addr) | uint64(k.Port)<<32 | uint64(k.Proto)<<48 | entryUsed<<56
}

// value4 is the value of an entry of frontends4: 4 bytes of the words behind
// the tags.
func value4(bucket []uint64, j uint32) *uint32 {
	return (*uint32)(unsafe.Add(unsafe.Pointer(&bucket[bucketEntries]), 4*j))
}

var layout6 = frontendLayout[bpf.LbFrontend6Key]{
	bucket: uint32(unsafe.Sizeof(bpf.LbFrontend6Bucket{})) / 8,
	passed: uint32(unsafe.Offsetof(bpf.LbFrontend6Bucket{}.Passed)) / 8,
	mark:   24,
	tag:    func(k bpf.LbFrontend6Key, value uint32) uint64 { return tag6(k) | uint64(value)<<32 },
	hash: func(k bpf.LbFrontend6Key, m uint64) uint64 {
		high, low := words6(k)
		x := (high*m ^ low) * m
		return ((x ^ x>>32) + tag6(k)) * m
	},
	is: func(b []uint64, j uint32, tag uint64, k bpf.LbFrontend6Key) bool {
		high, low := words6(k)
		return tag&(1<<32-1) == tag6(k) && atomic.LoadUint64(&b[bucketEntries+2*j]) == high &&
			atomic.LoadUint64(&b[bucketEntries+2*j+1]) == low
	},
	write: func(b []uint64, j uint32, k bpf.LbFrontend6Key, _ uint32) {
		high, low := words6(k)
		atomic.StoreUint64(&b[bucketEntries+2*j], high)
		atomic.StoreUint64(&b[bucketEntries+2*j+1], low)
	},
	read: func(b []uint64, j uint32, tag uint64) (bpf.LbFrontend6Key, uint32) {
		high, low := atomic.LoadUint64(&b[bucketEntries+2*j]), atomic.LoadUint64(&b[bucketEntries+2*j+1])
		k := bpf.LbFrontend6Key{Port: uint16(tag), Proto: uint8(tag >> 16)}
		k.Addr.W = [4]uint32{uint32(high), uint32(high >> 32), uint32(low), uint32(low >> 32)}
		return k, uint32(tag >> 32)
	},
}

func tag6(k bpf.LbFrontend6Key) uint64 { return uint64(k.Port) | uint64(k.Proto)<<16 | entryUsed<<24 }

func words6(k bpf.LbFrontend6Key) (high, low uint64) {
	w := k.Addr.W
	return uint64(w[0]) | uint64(w[1])<<32, uint64(w[2]) | uint64(w[3])<<32
}

// frontendElements is the number of array elements of a frontends table that
// holds so many entries: the buckets, and one for the multiplier.
func frontendElements(entries uint32) uint32 {
	buckets := max((entries+entriesPerBucket-1)/entriesPerBucket, probesMax)
	return 1<<bits.Len32(buckets-1) + 1
}

func mapFrontends[B any, K comparable](m *ebpf.Map, layout *frontendLayout[K], writable bool) (*Frontends[K], error) {
	array, err := mapArray[B](m, writable)
	if err != nil {
		return nil, err
	}
	f := &Frontends[K]{memory: array, words: array.words, layout: layout}
	buckets := array.Len() - 1
	f.shift = 64 - bits.Len32(buckets-1)
	header := &f.words[buckets*layout.bucket]
	if writable && *header == 0 {
		// Odd, so that no bit of a key is lost.
		*header = rand.Uint64() | 1
	}
	f.multiplier = *header
	return f, nil
}

func (f *Frontends[K]) unmap() {
	if f != nil {
		f.memory.unmap()
	}
}

func (f *Frontends[K]) buckets() uint32 { return 1 << (64 - f.shift) }

func (f *Frontends[K]) bucket(i uint32) []uint64 {
	return f.words[i*f.layout.bucket : (i+1)*f.layout.bucket]
}

func (f *Frontends[K]) passed(i uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&f.bucket(i)[f.layout.passed]))
}

// probe is the i-th bucket on the way of a key.
func (f *Frontends[K]) probe(hash uint64, i uint32) uint32 {
	return uint32(hash>>f.shift+uint64(i)*(hash>>8|1)) & (f.buckets() - 1)
}

// find returns where a key stands: the j-th entry of the i-th bucket of its way.
func (f *Frontends[K]) find(key K, hash uint64) (i, j uint32, found bool) {
	for i := range uint32(probesMax) {
		at := f.probe(hash, i)
		b := f.bucket(at)
		for j := range bucketEntries {
			if tag := atomic.LoadUint64(&b[j]); tag != 0 && f.layout.is(b, j, tag, key) {
				return i, j, true
			}
		}
		if atomic.LoadUint32(f.passed(at)) == 0 {
			break
		}
	}
	return 0, 0, false
}

// Put inserts an entry, or replaces the value of one. It returns ErrCrowded
// when there is no place for it.
func (f *Frontends[K]) Put(key K, value uint32) error {
	hash := f.layout.hash(key, f.multiplier)
	i, j, found := f.find(key, hash)
	if !found {
		var room bool
		if i, j, room = f.room(hash); !room {
			return ErrCrowded
		}
		// A way that ends too early would hide the entry.
		for passed := range i {
			atomic.AddUint32(f.passed(f.probe(hash, passed)), 1)
		}
	}
	b := f.bucket(f.probe(hash, i))
	f.layout.write(b, j, key, value)
	atomic.StoreUint64(&b[j], f.layout.tag(key, value))
	return nil
}

// room returns the first free place on a way.
func (f *Frontends[K]) room(hash uint64) (i, j uint32, found bool) {
	for i := range uint32(probesMax) {
		b := f.bucket(f.probe(hash, i))
		for j := range bucketEntries {
			if b[j] == 0 {
				return i, j, true
			}
		}
	}
	return 0, 0, false
}

// PutAll inserts or replaces entries and returns those for which there is no
// place, in the memory of the arguments.
func (f *Frontends[K]) PutAll(keys []K, values []uint32) ([]K, []uint32) {
	left := 0
	for i, key := range keys {
		if f.Put(key, values[i]) != nil {
			keys[left], values[left] = key, values[i]
			left++
		}
	}
	return keys[:left], values[:left]
}

// Get returns the value of a key; false when there is none.
func (f *Frontends[K]) Get(key K) (uint32, bool) {
	hash := f.layout.hash(key, f.multiplier)
	i, j, found := f.find(key, hash)
	if !found {
		return 0, false
	}
	b := f.bucket(f.probe(hash, i))
	_, value := f.layout.read(b, j, atomic.LoadUint64(&b[j]))
	return value, true
}

// Removed is the place of an entry that went. It belongs to the table that it
// is of, and means nothing to a larger one that replaced that.
type Removed struct {
	table      uint64
	bucket, at uint32
}

// Remove takes an entry away; false when there is none. Its place is to be
// released once no program can be reading it any more.
func (f *Frontends[K]) Remove(key K) (Removed, bool) {
	hash := f.layout.hash(key, f.multiplier)
	i, j, found := f.find(key, hash)
	if !found {
		return Removed{}, false
	}
	at := f.probe(hash, i)
	b := f.bucket(at)
	atomic.StoreUint64(&b[j], b[j]^(entryUsed|entryRemoved)<<f.layout.mark)
	return Removed{f.multiplier, at, j}, true
}

// Release gives a place back, and takes back its part in the counts of the
// buckets that its key passed over. An agent that is killed in between leaves
// counts that are too high: ways are longer than they need be then.
func (f *Frontends[K]) Release(r Removed) {
	if r.table != f.multiplier {
		return
	}
	b := f.bucket(r.bucket)
	key, _ := f.layout.read(b, r.at, b[r.at])
	atomic.StoreUint64(&b[r.at], 0)
	hash := f.layout.hash(key, f.multiplier)
	for i := range uint32(probesMax) {
		at := f.probe(hash, i)
		if at == r.bucket {
			return
		}
		atomic.AddUint32(f.passed(at), ^uint32(0))
	}
}

// ReleaseAll gives back all places that wait for it, also those that an earlier
// agent left so, and returns how many they were.
func (f *Frontends[K]) ReleaseAll() int {
	n := 0
	for i := range f.buckets() {
		b := f.bucket(i)
		for j := range bucketEntries {
			if b[j]>>f.layout.mark&entryRemoved != 0 {
				f.Release(Removed{f.multiplier, i, j})
				n++
			}
		}
	}
	return n
}

// All yields every entry. Those that come or go meanwhile may be missed.
func (f *Frontends[K]) All() iter.Seq2[K, uint32] {
	return func(yield func(K, uint32) bool) {
		for i := range f.buckets() {
			b := f.bucket(i)
			for j := range bucketEntries {
				tag := atomic.LoadUint64(&b[j])
				if tag>>f.layout.mark&entryUsed == 0 {
					continue
				}
				key, value := f.layout.read(b, j, tag)
				// It may have gone, and another one come in its place.
				if atomic.LoadUint64(&b[j]) == tag && !yield(key, value) {
					return
				}
			}
		}
	}
}

// Entries reads the whole table.
func (f *Frontends[K]) Entries() map[K]uint32 {
	out := make(map[K]uint32)
	for key, value := range f.All() {
		out[key] = value
	}
	return out
}

// MaxEntries is the number of entries that the table is meant for.
func (f *Frontends[K]) MaxEntries() uint32 { return f.buckets() * entriesPerBucket }

func (f *Frontends[K]) copyFrom(o *Frontends[K]) error {
	for key, value := range o.All() {
		if err := f.Put(key, value); err != nil {
			return err
		}
	}
	return nil
}
