// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"strconv"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
)

// dataplane is compiler, tables and, with a place, programs.
type dataplane struct {
	compiler   *compile.Compiler
	reconciler *reconcile.Reconciler
	loader     *loader.Loader
	barrier    *maps.Barrier
}

// newDataplane loads programs into a place; without one, tables only.
func newDataplane(p *bed) (*dataplane, error) {
	d := &dataplane{compiler: compile.New(compile.Config{Node: service.Node{Name: "here"}})}
	attach := func(*maps.Set) error { return nil }
	var err error
	if p != nil {
		if d.loader, err = loader.Open(loader.Config{BPFFSRoot: p.pins, CgroupRoot: p.cgroup}); err != nil {
			return nil, err
		}
		attach = d.loader.Attach
	}
	if d.barrier, err = maps.NewBarrier(); err != nil {
		return nil, err
	}
	d.reconciler, err = reconcile.New(reconcile.Config{Attach: attach, Wait: d.barrier.Wait, Node: reconcile.Node{
		NodePortAddrs: map[netip.Addr]bool{netip.MustParseAddr("127.0.0.1"): true},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
	}})
	return d, err
}

func (d *dataplane) apply(u compile.Update) error { return d.reconciler.Apply(d.compiler.Apply(u)) }

func (d *dataplane) close(p *bed) error {
	d.barrier.Close()
	if d.loader == nil {
		return nil
	}
	return errors.Join(d.loader.Close(), p.clean())
}

// vip and endpoint number the addresses of Services and of their endpoints,
// which are loopback, so that connects to them need no network.
func vip(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})
}

func endpoint(i, j int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1 + byte(j)%16 + byte(i>>16)<<4, byte(i >> 8), byte(i)})
}

// objects are n Services of a UDP and no other port, with k endpoints each, in
// slices of at most perSlice.
func objects(first, n, k, perSlice int) compile.Update {
	u := compile.Update{Services: make(map[service.Name]*service.Service, n), Slices: make(map[service.Name]*service.EndpointSlice, n)}
	for i := first; i < first+n; i++ {
		name := service.Name{Namespace: "bench", Name: "s" + strconv.Itoa(i)}
		u.Services[name] = &service.Service{Name: name, Created: time.Unix(int64(i), 0), ClusterIPs: []netip.Addr{vip(i)},
			Ports: []service.Port{{Protocol: service.UDP, Port: 80}}}
		for from := 0; from < k; from += perSlice {
			s := slice(i, from, min(perSlice, k-from), 0)
			u.Slices[s.Name] = s
		}
	}
	return u
}

// slice is one slice of Service i; version replaces its first endpoint.
func slice(i, from, n, version int) *service.EndpointSlice {
	s := &service.EndpointSlice{
		Name:    service.Name{Namespace: "bench", Name: "s" + strconv.Itoa(i) + "-" + strconv.Itoa(from)},
		Service: "s" + strconv.Itoa(i), Family: service.IPv4, Ports: []service.SlicePort{{Protocol: service.UDP, Port: 8080}},
		Endpoints: make([]service.Endpoint, n),
	}
	for j := range s.Endpoints {
		addr := endpoint(i, from+j)
		if n > 16 || version > 0 { // more than endpoint can number
			at := from + j
			if j == 0 {
				at += version * 100_000
			}
			addr = netip.AddrFrom4([4]byte{127, 128 + byte(at>>16)&127, byte(at >> 8), byte(at)})
		}
		s.Endpoints[j] = service.Endpoint{Addr: addr, Ready: true, Serving: true, NodeName: "here"}
	}
	return s
}
