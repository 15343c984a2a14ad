// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"portolan.dev/portolan/maps"
)

// frontendsByID finds what an id in a table of the wire programs stands for.
func frontendsByID(r *maps.Resolved) map[uint32]*maps.Frontend {
	out := make(map[uint32]*maps.Frontend, len(r.Frontends))
	for i := range r.Frontends {
		out[r.Frontends[i].ID] = &r.Frontends[i]
	}
	return out
}

func dumpFlows(set *maps.Set, r *maps.Resolved) ([]entry, error) {
	frontends := frontendsByID(r)
	var out []entry
	var err error
	for f := range set.Flows(&err) {
		owner, vip := "?", netip.AddrPort{} // its frontend is gone
		if known := frontends[f.Frontend]; known != nil {
			owner, vip = serviceOf(known.Name), known.Addr
		}
		proto := protocolName(f.Protocol)
		out = append(out, entry{
			Text:    fmt.Sprintf("%s %s>%s %s %s>%s %s %s idle=%s", proto, f.From, f.To, f.Action, f.NewFrom, f.NewTo, owner, f.State, f.Idle),
			Service: owner, Protocol: proto, addr: vip,
		})
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Text, b.Text) })
	return out, err
}

func dumpRefusals(set *maps.Set, r *maps.Resolved) ([]entry, error) {
	frontends := frontendsByID(r)
	refused, err := set.Refused()
	var out []entry
	for _, x := range refused {
		e := entry{Text: x.Reason}
		if f := frontends[x.Frontend]; f != nil {
			e.Service, e.addr, e.Protocol = serviceOf(f.Name), f.Addr, protocolName(f.Protocol)
			e.Text += fmt.Sprintf(" %s/%s %s", f.Addr, e.Protocol, label(f.Name))
		}
		if x.Backend != maps.Nobody {
			e.Text += fmt.Sprintf(" backend=%d", x.Backend)
		}
		e.Text += fmt.Sprintf(" packets=%d", x.Packets)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Text, b.Text) })
	return out, err
}

func dumpTunnelEnds(set *maps.Set, r *maps.Resolved) ([]entry, error) {
	names := map[uint32]maps.ServiceName{}
	for i := range r.Frontends {
		names[r.Frontends[i].ServicePort] = r.Frontends[i].Name
	}
	var out []entry
	var err error
	for k, backend := range set.TunnelEnds.All(&err) {
		if k.ServicePort == 0 {
			continue // says only that there are some of the address
		}
		addr, name := maps.FromAddr16(k.Addr).Unmap(), names[k.ServicePort]
		out = append(out, entry{Text: fmt.Sprintf("%s %s backend=%d", addr, label(name), backend), Service: serviceOf(name), addr: netip.AddrPortFrom(addr, 0)})
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Text, b.Text) })
	return out, err
}
