// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/maps"
)

// kernelTables are the tables behind each name of dump.
var kernelTables = map[string][]string{
	"frontends":  {maps.Frontends4, maps.Frontends6, maps.FrontendState},
	"slots":      {maps.Slots},
	"backends":   {maps.Backends4, maps.Backends6},
	"node-addrs": {maps.NodeAddrs4, maps.NodeAddrs6, maps.NodeConfig},
	"sources":    {maps.Sources4, maps.Sources6},
	"affinity":   {maps.Affinity},
	"sock-rev":   {maps.SockRev},
	"counters":   {maps.Reasons},
	"flows":      {maps.Flows4, maps.Flows6}, "refusals": {maps.Refusals}, "tunnel-ends": {maps.TunnelEnds},
}

// bytes reads the tables behind names as they are. Entries of arrays that hold
// zeros only are left out, for most of an array is unused.
func (f *dumpFilter) bytes(set *maps.Set, names []string) ([]entry, error) {
	out := []entry{}
	for _, name := range names {
		for _, table := range kernelTables[name] {
			list, err := rawEntries(set.Map(table), f.limit)
			if err != nil {
				return nil, fmt.Errorf("dump %s: %w", table, err)
			}
			for _, text := range list {
				out = append(out, entry{Map: table, Text: text})
			}
		}
	}
	return out, nil
}

func rawEntries(m *ebpf.Map, limit int) ([]string, error) {
	var out []string
	add := func(key, value []byte) {
		out = append(out, hex.EncodeToString(key)+" "+hex.EncodeToString(value))
	}
	full := func() bool { return limit > 0 && len(out) >= limit }
	walk := m.Iterate()
	var key, value []byte
	if m.Type() == ebpf.PerCPUArray {
		var perCPU [][]byte
		for !full() && walk.Next(&key, &perCPU) {
			for _, v := range perCPU {
				if !full() && !zeros(v) {
					add(key, v)
				}
			}
		}
	} else {
		for !full() && walk.Next(&key, &value) {
			if m.Type() != ebpf.Array || !zeros(value) {
				add(key, value)
			}
		}
	}
	// Entries that go while they are read cut a walk short.
	if err := walk.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, err
	}
	return out, nil
}

func zeros(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
