// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func crew(n int) []Member {
	out := make([]Member, n)
	for i := range out {
		out[i].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080)
	}
	return out
}

func shares(table []int32, n int) []int {
	out := make([]int, n)
	for _, i := range table {
		out[i]++
	}
	return out
}

func TestEveryMemberHasItsShareToASlot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom(MaglevSizes[:7]).Draw(t, "size")
		all := crew(rapid.IntRange(1, min(200, int(size))).Draw(t, "members"))
		total := uint64(0)
		for i := range all {
			all[i].Weight = rapid.Uint32Range(0, 100).Draw(t, "weight")
			total += uint64(max(1, all[i].Weight))
		}
		var m Maglev
		got := shares(m.Fill(size, all), len(all))
		starved := 0 // who has one slot against its share, which others pay
		for i := range all {
			if uint64(size)*uint64(max(1, all[i].Weight)) < total {
				starved++
			}
		}
		for i, n := range got {
			exact := float64(size) * float64(max(1, all[i].Weight)) / float64(total)
			if n == 0 || float64(n) > exact+1 || float64(n) < exact-1-float64(starved) {
				t.Fatalf("member %d of weight %d has %d slots of %d, its share is %.2f", i, all[i].Weight, n, size, exact)
			}
		}
	})
}

func TestTheTableDoesNotDependOnTheOrderOfMembers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := crew(rapid.IntRange(1, 100).Draw(t, "members"))
		for i := range all {
			all[i].Weight = rapid.Uint32Range(1, 10).Draw(t, "weight")
		}
		var a, b Maglev
		first := slices.Clone(a.Fill(1021, all))
		other := slices.Clone(all)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		rng.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		for slot, i := range b.Fill(1021, other) {
			if other[i].Addr != all[first[slot]].Addr {
				t.Fatalf("slot %d is %s's, and %s's when they come in another order", slot, all[first[slot]].Addr, other[i].Addr)
			}
		}
	})
}

// What moves beyond what must: the slots of those who stay. The thresholds are
// those of the plain algorithm with 30 % of slack.
func TestLittleMovesWhenAMemberGoes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size    uint32
		members int
		extra   float64 // of all slots, at most
	}{
		{251, 10, 0.068}, {1021, 10, 0.037}, {1021, 100, 0.063}, {4093, 10, 0.020}, {4093, 100, 0.043},
		{16381, 10, 0.0075}, {16381, 100, 0.021}, {16381, 1000, 0.008}, {65521, 100, 0.008},
	} {
		all := crew(c.members)
		var m Maglev
		before := slices.Clone(m.Fill(c.size, all))
		worst := 0.0
		for gone := 0; gone < c.members; gone += max(1, c.members/20) {
			rest := slices.Delete(slices.Clone(all), gone, gone+1)
			moved := 0
			for slot, i := range m.Fill(c.size, rest) {
				if was := before[slot]; int(was) != gone && rest[i].Addr != all[was].Addr {
					moved++
				}
			}
			worst = max(worst, float64(moved)/float64(c.size))
		}
		if worst > c.extra {
			t.Errorf("%d slots, %d members: %.2f %% of the slots move without need, allowed %.2f %%", c.size, c.members, 100*worst, 100*c.extra)
		}
	}
}

// The tables of nodes that run different versions must agree: this one may
// never change.
func TestTheTableIsTheSameForEver(t *testing.T) {
	t.Parallel()
	all := []Member{{netip.MustParseAddrPort("10.1.0.1:80"), 1}, {netip.MustParseAddrPort("10.1.0.2:80"), 2}, {netip.MustParseAddrPort("[fd00::3]:80"), 1}}
	var m Maglev
	sum := uint64(0)
	for slot, i := range m.Fill(251, all) {
		sum = mix(sum ^ uint64(slot)<<32 ^ uint64(i))
	}
	if sum != 0x4538439580530541 {
		t.Errorf("the table is another: %#x", sum)
	}
}

func BenchmarkMaglev(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		all := crew(n)
		b.Run(fmt.Sprintf("%d_members", n), func(b *testing.B) {
			var m Maglev
			for b.Loop() {
				m.Fill(DefaultMaglevSize, all)
			}
		})
	}
}
