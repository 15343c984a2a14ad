// SPDX-License-Identifier: Apache-2.0

// Needs root: real tables, no programs.

package reconcile

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// many are n Services of two families with a port and four endpoints each.
func many(first, n int) compile.Update {
	u := compile.Update{Services: make(map[service.Name]*service.Service, n), Slices: make(map[service.Name]*service.EndpointSlice, n)}
	for i := first; i < first+n; i++ {
		name := service.Name{Namespace: "many", Name: fmt.Sprintf("s%06d", i)}
		u.Services[name] = &service.Service{Name: name, ClusterIPs: []netip.Addr{addrAt("10.96.0.0", i), addrAt("fd00:96::", i)},
			Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}
		slice := &service.EndpointSlice{Name: name, Service: name.Name, Family: service.IPv4, Ports: []service.SlicePort{{Protocol: service.TCP, Port: 8080}}}
		for j := range 4 {
			slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: addrAt("10.0.0.0", 4*i+j), Ready: true, Serving: true})
		}
		u.Slices[name] = slice
	}
	return u
}

// withoutFilter is what tables say that filters of any size may belong to.
func withoutFilter(t rapidT, set *maps.Set) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(tables(t, set)) {
		if !strings.HasPrefix(line, "filter ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// Large batches are inserted beside their staging, and tables grow meanwhile.
func TestLargeBatchesLeaveWhatSmallOnesLeave(t *testing.T) {
	requireRoot(t)
	large := newBench(t, nil, many(0, 2000))
	defer func() { large.r.set.Close() }()
	large.apply(t, many(2000, 6000))
	small := newBench(t, nil, many(0, 100))
	defer func() { small.r.set.Close() }()
	for first := 100; first < 8000; first += 100 {
		small.apply(t, many(first, 100))
	}
	if withoutFilter(t, large.r.set) != withoutFilter(t, small.r.set) {
		t.Error("tables differ")
	}
	for _, table := range []string{maps.Slots, maps.Backends4, maps.Frontends4, maps.ServiceNames} {
		if large.r.resized[table] == 0 {
			t.Errorf("table %s did not grow", table)
		}
	}
	for _, b := range []*bench{large, small} {
		if leak := b.leaks(); leak != "" {
			t.Errorf("leak: %s", leak)
		}
	}
}

// What an agent does when it starts beside many Services: compile all there
// is, make tables, and fill them.
func BenchmarkFirstLoad(b *testing.B) {
	requireRoot(b)
	for _, services := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint("services=", services), func(b *testing.B) {
			all := many(0, services)
			for b.Loop() {
				b.StopTimer()
				runtime.GC()
				b.StartTimer()
				loaded := newBench(b, nil, all)
				b.StopTimer()
				loaded.r.set.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(services), "ns/service")
		})
	}
}

// However many Services there are beside it, a change of one endpoint writes
// the same few words.
func TestAChangeOfAnEndpointWritesNoMoreBesideManyServices(t *testing.T) {
	requireRoot(t)
	const enough = 64
	var written []int
	for _, services := range []int{10, 5000} {
		all := many(0, services)
		b := newBench(t, nil, all)
		defer func() { b.r.set.Close() }()
		name := service.Name{Namespace: "many", Name: "s000003"}
		slice := *all.Slices[name]
		slice.Endpoints = slices.Clone(slice.Endpoints)
		slice.Endpoints[0].Ready, slice.Endpoints[0].Serving = false, false
		before := words(b.r.set)
		b.apply(t, compile.Update{Slices: map[service.Name]*service.EndpointSlice{name: &slice}})
		differ := 0
		for i, after := range words(b.r.set) {
			if after != before[i] {
				differ++
			}
		}
		written = append(written, differ)
	}
	if written[0] == 0 || written[0] > enough || written[1] != written[0] {
		t.Errorf("%d words are written beside 10 Services, %d beside 5,000", written[0], written[1])
	}
}

// words are those of all tables that endpoints are written to.
func words(set *maps.Set) []uint64 {
	return slices.Concat(set.FrontendState.Words(0, set.FrontendState.Len()), set.Slots.Words(0, set.Slots.Len()),
		set.Backends4.Words(0, set.Backends4.Len()), set.Backends6.Words(0, set.Backends6.Len()))
}
