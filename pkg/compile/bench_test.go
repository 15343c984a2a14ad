// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
)

// The figures that the compiler is held to: a first load of many Services, and
// one endpoint that changes in a Service of some size beside others.

const benchNode = "node-0"

// benchService is Service i of a cluster, a ClusterIP with one TCP port.
func benchService(i int) *service.Service {
	return &service.Service{
		Name:       service.Name{Namespace: fmt.Sprint("ns-", i%50), Name: fmt.Sprintf("svc-%06d", i)},
		Created:    time.Unix(int64(i), 0),
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})},
		Ports:      []service.Port{{Name: "http", Protocol: service.TCP, Port: 80}},
	}
}

// benchSlice is slice k of Service i: n endpoints, from number first on.
func benchSlice(s *service.Service, k, first, n int) *service.EndpointSlice {
	sl := &service.EndpointSlice{
		Name:    service.Name{Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name.Name, k)},
		Service: s.Name.Name, Family: service.IPv4,
		Ports:     []service.SlicePort{{Name: "http", Protocol: service.TCP, Port: 8080}},
		Endpoints: make([]service.Endpoint, n),
	}
	for j := range sl.Endpoints {
		at := first + j
		sl.Endpoints[j] = service.Endpoint{
			Addr:  netip.AddrFrom4([4]byte{10, byte(at >> 16), byte(at >> 8), byte(at)}),
			Ready: true, Serving: true, NodeName: fmt.Sprint("node-", at%100), Zone: fmt.Sprint("zone-", at%3),
		}
	}
	return sl
}

func benchCluster(services, endpoints int) Update {
	u := Update{
		Services: make(map[service.Name]*service.Service, services),
		Slices:   make(map[service.Name]*service.EndpointSlice, services),
	}
	for i := range services {
		s := benchService(i)
		sl := benchSlice(s, 0, i*endpoints, endpoints)
		u.Services[s.Name], u.Slices[sl.Name] = s, sl
	}
	return u
}

func BenchmarkFirstLoad(b *testing.B) {
	for _, services := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("services=%d/endpoints=10", services), func(b *testing.B) {
			all := benchCluster(services, 10)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				runtime.GC()
				c := New(Config{Node: service.Node{Name: benchNode}})
				b.StartTimer()
				if got := len(c.Apply(all)); got != services {
					b.Fatalf("%d changes", got)
				}
			}
		})
	}
}

// edited returns copies of a slice, to be applied in turn: each differs from
// the one before in one endpoint.
func edited(sl *service.EndpointSlice, edit func(version int, sl *service.EndpointSlice)) []Update {
	var out []Update
	for version := range 4 {
		next := *sl
		next.Endpoints = append([]service.Endpoint(nil), sl.Endpoints...)
		edit(version, &next)
		out = append(out, Update{Slices: map[service.Name]*service.EndpointSlice{sl.Name: &next}})
	}
	return out
}

func BenchmarkOneEndpoint(b *testing.B) {
	edits := []struct {
		name string
		edit func(version int, sl *service.EndpointSlice)
	}{
		{"readiness", func(version int, sl *service.EndpointSlice) {
			sl.Endpoints[len(sl.Endpoints)/2].Ready = version%2 == 0
		}},
		{"replaced", func(version int, sl *service.EndpointSlice) {
			// One pod goes, another comes at the end, as a rollout does.
			at := len(sl.Endpoints) / 2
			gone := sl.Endpoints[at]
			gone.Addr = netip.AddrFrom4([4]byte{10, 200, 0, byte(version)})
			sl.Endpoints = append(append(sl.Endpoints[:at:at], sl.Endpoints[at+1:]...), gone)
		}},
	}
	for _, others := range []int{100, 100_000} {
		c := New(Config{Node: service.Node{Name: benchNode}})
		c.Apply(benchCluster(others, 10))
		for n, size := range []struct{ endpoints, perSlice int }{{10, 10}, {1000, 1000}, {1000, 100}, {5000, 1000}, {5000, 100}} {
			s := benchService(1_000_000 + n)
			u := Update{Services: map[service.Name]*service.Service{s.Name: s}, Slices: map[service.Name]*service.EndpointSlice{}}
			var first *service.EndpointSlice
			for k := 0; k*size.perSlice < size.endpoints; k++ {
				sl := benchSlice(s, k, k*size.perSlice, size.perSlice)
				u.Slices[sl.Name] = sl
				if k == 0 {
					first = sl
				}
			}
			c.Apply(u)
			for _, e := range edits {
				updates := edited(first, e.edit)
				for _, u := range updates {
					c.Apply(u) // buffers reach their size
				}
				name := fmt.Sprintf("others=%d/endpoints=%d/slices=%d/%s", others, size.endpoints, size.endpoints/size.perSlice, e.name)
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						if got := len(c.Apply(updates[i%len(updates)])); got != 1 {
							b.Fatalf("%d changes", got)
						}
						i++
					}
				})
			}
		}
	}
}

// Objects that differ in nothing that matters: what every resync brings.
func BenchmarkNothingNew(b *testing.B) {
	const services = 10_000
	c := New(Config{Node: service.Node{Name: benchNode}})
	c.Apply(benchCluster(services, 10))
	again := benchCluster(services, 10)
	for b.Loop() {
		if got := len(c.Apply(again)); got != 0 {
			b.Fatalf("%d changes", got)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/services, "ns/service")
}

// The API answers with this while the compiler's owner waits.
func BenchmarkExplain(b *testing.B) {
	for _, endpoints := range []int{10, 5000} {
		b.Run(fmt.Sprint("endpoints=", endpoints), func(b *testing.B) {
			c := New(Config{Node: service.Node{Name: benchNode}})
			s := benchService(0)
			sl := benchSlice(s, 0, 0, endpoints)
			c.Apply(Update{Services: map[service.Name]*service.Service{s.Name: s}, Slices: map[service.Name]*service.EndpointSlice{sl.Name: sl}})
			for b.Loop() {
				if got := len(c.Explain(s.Name)); got != endpoints {
					b.Fatalf("%d endpoints", got)
				}
			}
		})
	}
}
