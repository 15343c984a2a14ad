// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/paths"
)

// tables measures how long objects in memory take to the tables: compiling,
// making the maps whose size depends on them, and writing all of them; programs
// are not loaded.
func tables(*bed) ([]figure, error) {
	var out []figure
	for _, c := range []struct {
		services, rounds int
		bar              float64
	}{{10_000, 7, 60}, {100_000, 3, 1000}} {
		all := objects(0, c.services, 10, 100)
		var times []float64
		for range c.rounds {
			runtime.GC()
			d, err := newDataplane(nil)
			if err != nil {
				return nil, err
			}
			begin := time.Now()
			percent := debug.SetGCPercent(-1) // as the agent does
			err = d.apply(all)
			debug.SetGCPercent(percent)
			if err != nil {
				return nil, err
			}
			times = append(times, time.Since(begin).Seconds()*1000)
			if c.rounds == 3 && len(times) == c.rounds {
				changes, err := oneEndpoint(d, c.services)
				if err != nil {
					return nil, err
				}
				out = append(out, changes...)
			}
			d.reconciler.Tables().Close()
			d.barrier.Close()
		}
		value := paths.Median(times)
		out = append(out, figure{fmt.Sprintf("%d Services x 10 endpoints into the maps", c.services), value, "ms", "", 0, c.bar, value <= c.bar})
	}
	for _, others := range []int{100, 10_000} {
		d, err := newDataplane(nil)
		if err != nil {
			return nil, err
		}
		if err := d.apply(objects(0, others, 10, 100)); err != nil {
			return nil, err
		}
		changes, err := oneEndpoint(d, others)
		if err != nil {
			return nil, err
		}
		out = append(out, changes...)
		d.reconciler.Tables().Close()
		d.barrier.Close()
	}
	table, err := maglevTable()
	return append(out, table), err
}

// maglevTable measures an endpoint change of a Service with a Maglev table: the
// table is filled anew and published.
func maglevTable() (figure, error) {
	d, err := newDataplane(nil)
	if err != nil {
		return figure{}, err
	}
	defer d.barrier.Close()
	u := objects(0, 1, 100, 100)
	for _, s := range u.Services {
		s.Algorithm, s.ExternalIPs = service.Maglev, []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	}
	if err := d.apply(u); err != nil {
		return figure{}, err
	}
	defer d.reconciler.Tables().Close()
	var times []float64
	for version := 1; version <= 300; version++ {
		s := slice(0, 0, 100, 1+version%50)
		begin := time.Now()
		err := d.apply(compile.Update{Slices: map[service.Name]*service.EndpointSlice{s.Name: s}})
		times = append(times, time.Since(begin).Seconds()*1e6)
		if err != nil {
			return figure{}, err
		}
		if err := d.reconciler.RecycleNow(); err != nil {
			return figure{}, err
		}
	}
	value := paths.Median(times)
	return figure{fmt.Sprintf("Maglev table of %d slots built and published", compile.DefaultMaglevSize), value, "us", "", 0, 500, value <= 500}, nil
}

// oneEndpoint measures the change of one endpoint beside other Services.
func oneEndpoint(d *dataplane, others int) ([]figure, error) {
	var out []figure
	for n, c := range []struct {
		endpoints int
		bar       float64
	}{{10, 10}, {1000, 60}, {5000, 250}} {
		i := others + n
		if err := d.apply(objects(i, 1, c.endpoints, 100)); err != nil {
			return nil, err
		}
		var times []float64
		for version := 1; version <= 300; version++ {
			s := slice(i, 0, min(100, c.endpoints), 1+version%50)
			u := compile.Update{Slices: map[service.Name]*service.EndpointSlice{s.Name: s}}
			begin := time.Now()
			err := d.apply(u)
			times = append(times, time.Since(begin).Seconds()*1e6)
			if err != nil {
				return nil, err
			}
			if version%50 == 0 { // as the agent does beside the changes
				if err := d.reconciler.RecycleNow(); err != nil {
					return nil, err
				}
			}
		}
		value := paths.Median(times)
		out = append(out, figure{fmt.Sprintf("one of %d endpoints changes, %d other Services", c.endpoints, others), value, "us", "", 0, c.bar, value <= c.bar})
	}
	return out, nil
}
