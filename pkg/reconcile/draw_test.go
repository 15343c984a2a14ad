// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"pgregory.net/rapid"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// Small domains, so that objects meet: addresses are contested, endpoints
// shared, node ports moved.
var (
	someServices = []service.Name{{Namespace: "a", Name: "one"}, {Namespace: "a", Name: "two"}, {Namespace: "b", Name: "one"}}
	someSlices   = []string{"x", "y", "z", "w"}
)

func drawObjects(t *rapid.T) compile.Update {
	u := compile.Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.EndpointSlice{}}
	for _, name := range someServices {
		if rapid.IntRange(0, 3).Draw(t, "exists") < 3 {
			u.Services[name] = drawService(t, name)
		}
	}
	for _, n := range someSlices {
		s := drawSlice(t, n)
		u.Slices[s.Name] = s
	}
	return u
}

// drawEdit changes a few objects in all and returns the changes.
func drawEdit(t *rapid.T, all *compile.Update) compile.Update {
	u := compile.Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.EndpointSlice{}}
	for range rapid.IntRange(1, 3).Draw(t, "edits") {
		if rapid.Bool().Draw(t, "edit a service") {
			name := rapid.SampledFrom(someServices).Draw(t, "service")
			if rapid.IntRange(0, 4).Draw(t, "delete") == 4 {
				u.Services[name] = nil
				delete(all.Services, name)
			} else {
				u.Services[name] = drawService(t, name)
				all.Services[name] = u.Services[name]
			}
			continue
		}
		s := drawSlice(t, rapid.SampledFrom(someSlices).Draw(t, "slice"))
		if rapid.IntRange(0, 4).Draw(t, "delete") == 4 {
			u.Slices[s.Name] = nil
			delete(all.Slices, s.Name)
		} else {
			u.Slices[s.Name], all.Slices[s.Name] = s, s
		}
	}
	return u
}

func drawService(t *rapid.T, name service.Name) *service.Service {
	s := &service.Service{
		Name: name, Created: time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "created")), 0),
		Type:          rapid.SampledFrom([]service.Type{service.ClusterIP, service.NodePort, service.NodePort, service.LoadBalancer, service.LoadBalancer, service.ExternalName}).Draw(t, "type"),
		InternalLocal: rapid.Bool().Draw(t, "iTP"), ExternalLocal: rapid.Bool().Draw(t, "eTP"),
		Affinity:   rapid.SampledFrom([]time.Duration{0, time.Second, time.Hour}).Draw(t, "affinity"),
		Headless:   rapid.IntRange(0, 9).Draw(t, "headless") == 9,
		Algorithm:  rapid.SampledFrom([]service.Algorithm{service.Random, service.Random, service.Maglev}).Draw(t, "algorithm"),
		Forwarding: rapid.SampledFrom([]service.Forwarding{service.SNAT, service.DSR}).Draw(t, "forwarding"),
	}
	if rapid.IntRange(0, 9).Draw(t, "elsewhere") == 9 {
		s.ProxyName = "other"
	}
	host := rapid.IntRange(1, 3)
	for _, prefix := range []string{"10.96.0.%d", "fd00:96::%d"} {
		if rapid.IntRange(0, 3).Draw(t, "family") < 3 {
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(fmt.Sprintf(prefix, host.Draw(t, "vip"))))
		}
	}
	if rapid.Bool().Draw(t, "ingress") {
		s.LoadBalancerIPs = append(s.LoadBalancerIPs, netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", host.Draw(t, "lb"))))
	}
	if rapid.Bool().Draw(t, "guard") {
		s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(fmt.Sprintf("198.51.%d.0/24", host.Draw(t, "range"))))
	}
	for i := range rapid.IntRange(1, 2).Draw(t, "ports") {
		p := service.Port{Name: []string{"", "p"}[i], Protocol: rapid.SampledFrom([]service.Protocol{service.TCP, service.TCP, service.TCP, service.UDP}).Draw(t, "protocol"), Port: uint16(80 + i)}
		if rapid.Bool().Draw(t, "nodeport") {
			p.NodePort = uint16(30000 + 2*rapid.IntRange(0, 1).Draw(t, "number") + i)
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func drawSlice(t *rapid.T, name string) *service.EndpointSlice {
	owner := rapid.SampledFrom(someServices).Draw(t, "owner")
	s := &service.EndpointSlice{Name: service.Name{Namespace: owner.Namespace, Name: name}, Service: owner.Name,
		Family: rapid.SampledFrom([]service.Family{service.IPv4, service.IPv6}).Draw(t, "family")}
	for i := range rapid.IntRange(1, 2).Draw(t, "ports") {
		s.Ports = append(s.Ports, service.SlicePort{Name: []string{"", "p"}[i], Protocol: rapid.SampledFrom([]service.Protocol{service.TCP, service.TCP, service.TCP, service.UDP}).Draw(t, "protocol"), Port: uint16(8080 + rapid.IntRange(0, 1).Draw(t, "target"))})
	}
	for range rapid.IntRange(1, 6).Draw(t, "endpoints") {
		prefix := "10.0.0.%d"
		if s.Family == service.IPv6 {
			prefix = "fd00::%d"
		}
		s.Endpoints = append(s.Endpoints, service.Endpoint{
			Addr:  netip.MustParseAddr(fmt.Sprintf(prefix, rapid.IntRange(1, 6).Draw(t, "address"))),
			Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving"), Terminating: rapid.Bool().Draw(t, "terminating"),
			NodeName: rapid.SampledFrom([]string{"here", "there"}).Draw(t, "node"),
		})
	}
	return s
}

// reader follows one frontend as a program does.
type reader struct {
	set   *maps.Set
	id    uint32
	epoch atomic.Uint64 // odd while a read is under way
	reads atomic.Uint64
}

// wait lasts until every read that is under way has ended, as a grace period
// does with programs.
func (r *reader) wait() error {
	for at := r.epoch.Load(); at%2 == 1 && r.epoch.Load() == at; {
		runtime.Gosched()
	}
	return nil
}

func (r *reader) run(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		r.epoch.Add(1)
		err := r.read()
		r.epoch.Add(1)
		if err != nil {
			return err
		}
		r.reads.Add(1)
	}
}

// sizeOf is how many endpoints a generation of the Service has.
func sizeOf(generation byte) uint32 { return 1 + uint32(generation)%7 }

// read checks that all backends of the set are of one generation of the
// Service, and that there are as many as it has.
func (r *reader) read() error {
	base, count, _ := maps.SplitRangeWord(r.set.FrontendState.LoadWord(r.id, maps.StateInternal))
	if count == 0 {
		return fmt.Errorf("an empty set")
	}
	var generation byte
	for i := range count {
		runtime.Gosched() // give the writer every chance
		id, number := maps.SplitSlotWord(r.set.Slots.LoadWord(base+i, 0))
		b := r.set.Backends4.Load(id)
		if b.Generation != number {
			return fmt.Errorf("slot %d names generation %d of backend %d, which has %d", base+i, number, id, b.Generation)
		}
		n := maps.FromAddr4(b.Addr).As4()[2]
		if i > 0 && n != generation {
			return fmt.Errorf("a mixed set: endpoints of %d and %d", generation, n)
		}
		generation = n
	}
	if count != sizeOf(generation) {
		return fmt.Errorf("a set of %d, generation %d has %d", count, generation, sizeOf(generation))
	}
	return nil
}
