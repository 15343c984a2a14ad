// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Array is a BPF array in mapped memory: reading and writing it takes no
// system call. T is a layout of package bpf whose size is a multiple of 8, so
// that entries stand as close in the kernel as in a Go slice.
//
// Programs read while the agent writes. What they may see at once is decided
// by who calls: entries that no program can reach yet are written with plain
// stores (Fill, At), words that programs can see with one atomic store each.
// Concurrent writers of one word must agree among themselves.
type Array[T any] struct {
	memory  []byte
	entries []T
	words   []uint64
	stride  int // words per entry
}

func mapArray[T any](m *ebpf.Map, writable bool) (*Array[T], error) {
	var zero T
	size := int(unsafe.Sizeof(zero))
	if size%8 != 0 || int(m.ValueSize()) != size {
		return nil, fmt.Errorf("map table %v: entries of %d bytes cannot be seen as %d", m, m.ValueSize(), size)
	}
	length := int(m.MaxEntries()) * size
	if page := os.Getpagesize(); length%page != 0 {
		length += page - length%page
	}
	protection := unix.PROT_READ
	if writable {
		protection |= unix.PROT_WRITE
	}
	memory, err := unix.Mmap(m.FD(), 0, length, protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map table %v into memory: %w", m, err)
	}
	first := unsafe.Pointer(&memory[0])
	n := int(m.MaxEntries())
	return &Array[T]{
		memory:  memory,
		entries: unsafe.Slice((*T)(first), n),
		words:   unsafe.Slice((*uint64)(first), n*size/8),
		stride:  size / 8,
	}, nil
}

// unmap gives the memory back; the array must not be used afterwards. A nil
// array, of a set that could not be opened whole, is fine.
func (a *Array[T]) unmap() {
	if a != nil && a.memory != nil {
		// Only an invalid range can make this fail, and it is the one mapped.
		_ = unix.Munmap(a.memory)
		a.memory, a.entries, a.words = nil, nil, nil
	}
}

// Len is the number of entries.
func (a *Array[T]) Len() uint32 { return uint32(len(a.entries)) }

// At is the entry itself. Writing through it is for entries that no program
// can see.
func (a *Array[T]) At(i uint32) *T { return &a.entries[i] }

// Load copies an entry. Words that change meanwhile may be old or new each.
func (a *Array[T]) Load(i uint32) T { return a.entries[i] }

// StoreWord publishes word w (of 8 bytes, from 0) of an entry: programs see
// the old or the new word, and with the new one everything stored before.
func (a *Array[T]) StoreWord(i uint32, w int, v uint64) {
	atomic.StoreUint64(&a.words[int(i)*a.stride+w], v)
}

// LoadWord reads word w of an entry.
func (a *Array[T]) LoadWord(i uint32, w int) uint64 {
	return atomic.LoadUint64(&a.words[int(i)*a.stride+w])
}

// Store32 publishes the 4 bytes at offset (in bytes, a multiple of 4).
func (a *Array[T]) Store32(i uint32, offset uintptr, v uint32) {
	word := unsafe.Pointer(&a.words[int(i)*a.stride])
	atomic.StoreUint32((*uint32)(unsafe.Add(word, offset)), v)
}

// Words is the memory of n entries from the i-th on, to be filled with plain
// stores while no program can see them.
func (a *Array[T]) Words(i, n uint32) []uint64 {
	return a.words[int(i)*a.stride : int(i+n)*a.stride]
}

// copyFrom fills the first entries with those of another, smaller array.
func (a *Array[T]) copyFrom(b *Array[T]) { copy(a.words, b.words) }
