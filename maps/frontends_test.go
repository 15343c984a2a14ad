// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/test/world"
)

// newFrontends4 and newFrontends6 make tables of the smallest size.
func newFrontends4(t testing.TB) *Frontends[bpf.LbFrontend4Key] {
	t.Helper()
	f, err := mapFrontends[bpf.LbFrontend4Bucket](newBuckets(t, Frontends4, 1), &layout4, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.unmap)
	return f
}

func newFrontends6(t testing.TB) *Frontends[bpf.LbFrontend6Key] {
	t.Helper()
	f, err := mapFrontends[bpf.LbFrontend6Bucket](newBuckets(t, Frontends6, 1), &layout6, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.unmap)
	return f
}

func newBuckets(t testing.TB, name string, entries uint32) *ebpf.Map {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	specs, err := Specs(Sizes{Frontends4: entries, Frontends6: entries})
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(specs[name])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestFrontendsAreAMap(t *testing.T) {
	t.Parallel()
	t.Run("IPv4", func(t *testing.T) {
		t.Parallel()
		behavesAsAMap(t, newFrontends4(t), func(n int) bpf.LbFrontend4Key {
			return Frontend4Key(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}), uint16(n%3)), uint8(n%2)*6)
		})
	})
	t.Run("IPv6", func(t *testing.T) {
		t.Parallel()
		behavesAsAMap(t, newFrontends6(t), func(n int) bpf.LbFrontend6Key {
			return Frontend6Key(netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}), uint16(n%3)), uint8(n%2)*6)
		})
	})
}

// Whatever comes and goes, in a table that is too small for it: what Put took
// is found until it is removed, and a place that was removed stays as it is
// until it is released.
func behavesAsAMap[K comparable](t *testing.T, f *Frontends[K], key func(int) K) {
	rapid.Check(t, func(t *rapid.T) {
		clear(f.words[:f.buckets()*f.layout.bucket])
		want, waiting := map[K]uint32{}, map[Removed]bool{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			k := key(rapid.IntRange(1, 60).Draw(t, "key"))
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				value := rapid.Uint32().Draw(t, "value")
				_, had := want[k]
				if err := f.Put(k, value); err == nil {
					want[k] = value
				} else if had || !errors.Is(err, ErrCrowded) {
					t.Fatalf("put %v: %v", k, err)
				}
			case 2, 3:
				r, found := f.Remove(k)
				if _, had := want[k]; had != found {
					t.Fatalf("remove %v: found %v, want %v", k, found, had)
				}
				if delete(want, k); found {
					waiting[r] = true
				}
			default:
				for r := range waiting {
					f.Release(r)
					delete(waiting, r)
					break
				}
			}
			for r := range waiting {
				if tag := f.bucket(r.bucket)[r.at]; tag>>f.layout.mark&entryRemoved == 0 {
					t.Fatalf("place %v was used again before its release", r)
				}
			}
			agree(t, f, want)
		}
		for k := range want {
			f.Remove(k)
		}
		f.ReleaseAll()
		for i := range f.buckets() {
			b := f.bucket(i)
			if *f.passed(i) != 0 || slices.ContainsFunc(b[:bucketEntries], func(tag uint64) bool { return tag != 0 }) {
				t.Fatalf("bucket %d of an empty table has %x", i, b)
			}
		}
	})
}

func agree[K comparable](t *rapid.T, f *Frontends[K], want map[K]uint32) {
	if have := f.Entries(); !maps.Equal(have, want) {
		t.Fatalf("table holds %v, want %v", have, want)
	}
	for k, v := range want {
		if have, found := f.Get(k); !found || have != v {
			t.Fatalf("%v is %d, %v; want %d", k, have, found, v)
		}
	}
}

// The same addresses collide in one table and not in the next: nobody can name
// addresses that collide wherever they come.
func TestTablesSpreadByNumbersOfTheirOwn(t *testing.T) {
	t.Parallel()
	homes := map[string]bool{}
	for range 8 {
		f := newFrontends4(t)
		var of []uint32
		for n := range 16 {
			k := Frontend4Key(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}), 80), 6)
			of = append(of, f.probe(layout4.hash(k, f.multiplier), 0))
		}
		homes[fmt.Sprint(of)] = true
	}
	if len(homes) < 7 {
		t.Errorf("8 tables spread 16 addresses in %d ways", len(homes))
	}
}

// Regular addresses, as clusters give them out, find places until tables grow.
func TestRegularAddressesFindPlaces(t *testing.T) {
	t.Parallel()
	for _, step := range []uint32{1, 2, 16, 256, 4096, 1 << 16} {
		f, err := mapFrontends[bpf.LbFrontend4Bucket](newBuckets(t, Frontends4, 20_000), &layout4, true)
		if err != nil {
			t.Fatal(err)
		}
		for n := range f.MaxEntries() * 4 / 5 {
			var at [4]byte
			binary.BigEndian.PutUint32(at[:], 10<<24+n*step)
			if err := f.Put(Frontend4Key(netip.AddrPortFrom(netip.AddrFrom4(at), 443), 6), n); err != nil {
				t.Errorf("step %d: entry %d of %d: %v", step, n, f.MaxEntries(), err)
				break
			}
		}
		f.unmap()
	}
}

// Who reads while entries come and go finds those that stay, and never a value
// of another key.
func TestReadersFindWhatStays(t *testing.T) {
	t.Parallel()
	f := newFrontends6(t)
	key := func(n int) bpf.LbFrontend6Key {
		return Frontend6Key(netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}), 53), 17)
	}
	const stay = 8
	for n := range stay {
		if err := f.Put(key(n), uint32(n)); err != nil {
			t.Fatal(err)
		}
	}
	const enough = 20_000
	var reads atomic.Int64
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				for n := range stay {
					if v, found := f.Get(key(n)); !found || v != uint32(n) {
						t.Errorf("key %d is %d, %v", n, v, found)
						return
					}
				}
				reads.Add(1)
			}
		})
	}
	deadline := time.Now().Add(world.Scaled(time.Minute))
	for round := 0; round < enough || reads.Load() < enough; round++ {
		if t.Failed() || time.Now().After(deadline) {
			t.Errorf("stopped after %d changes and %d reads", round, reads.Load())
			break
		}
		n := stay + round%32
		if f.Put(key(n), uint32(n)) == nil && round%3 > 0 {
			r, _ := f.Remove(key(n))
			f.Release(r)
		}
	}
	close(done)
	readers.Wait()
}
