// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/service"
)

// entry is one line of a dump.
type entry struct {
	Map     string `json:"map"`
	Text    string `json:"entry"`
	service string
	addr    netip.AddrPort
	proto   string
}

// dump is what dump prints as JSON.
type dump struct {
	api.Meta
	Items []entry `json:"items"`
}

// dumpFilter is which entries are shown.
type dumpFilter struct {
	service, addr, proto string
	limit                int
}

// dumpers read one table each, by the name operators give it.
var dumpers = map[string]func(*maps.Set, *maps.Resolved) ([]entry, error){
	"frontends": dumpFrontends, "slots": dumpSlots, "backends": dumpBackends,
	"node-addrs": dumpNodeAddrs, "sources": dumpSources, "affinity": dumpAffinity,
	"sock-rev": dumpSockRev, "counters": dumpCounters,
}

func mapNames() []string {
	names := make([]string, 0, len(dumpers))
	for name := range dumpers {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func newDump(env *environment) *cobra.Command {
	var f dumpFilter
	cmd := &cobra.Command{
		Use:   "dump MAP|all",
		Short: "Print the entries of a kernel table, a line each",
		Long:  "Print the entries of a kernel table, a line each. MAP is one of " + strings.Join(mapNames(), ", ") + ".\nThe tables are read from their pins: no agent is needed.",
		Example: `  portolan dump frontends
  portolan dump backends --service prod/cart
  portolan dump all --addr 10.96.0.10`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: append(mapNames(), "all"),
		RunE:      func(_ *cobra.Command, args []string) error { return dumpMap(env, args[0], &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.service, "service", "", "only entries of this `NAMESPACE/NAME`")
	flags.StringVar(&f.addr, "addr", "", "only entries of this `IP[:PORT]`")
	flags.StringVar(&f.proto, "proto", "", "only entries of this `PROTOCOL`")
	flags.IntVar(&f.limit, "limit", 0, "at most `N` entries of a table")
	return cmd
}

func dumpMap(env *environment, what string, f *dumpFilter) error {
	names := []string{what}
	if what == "all" {
		names = mapNames()
	} else if dumpers[what] == nil {
		return fmt.Errorf("there is no map %q: use one of %s, all", what, strings.Join(mapNames(), ", "))
	}
	set, err := env.tables()
	if err != nil {
		return err
	}
	defer set.Close()
	resolved, err := set.Resolve()
	if err != nil {
		return err
	}
	out := dump{Meta: api.Meta{APIVersion: api.Version, Kind: "Dump"}, Items: []entry{}}
	for _, name := range names {
		list, err := dumpers[name](set, resolved)
		if err != nil {
			return fmt.Errorf("dump %s: %w", name, err)
		}
		list = slices.DeleteFunc(list, func(e entry) bool { return !f.wants(&e) })
		if f.limit > 0 {
			list = list[:min(f.limit, len(list))]
		}
		for i := range list {
			list[i].Map = name
		}
		out.Items = append(out.Items, list...)
	}
	if done, err := env.machine(out); done || err != nil {
		return err
	}
	for _, e := range out.Items {
		if what == "all" {
			fmt.Fprintf(env.out, "%-11s", e.Map)
		}
		fmt.Fprintln(env.out, e.Text)
	}
	return nil
}

func (f *dumpFilter) wants(e *entry) bool {
	if f.service != "" && e.service != f.service || f.proto != "" && !strings.EqualFold(e.proto, f.proto) {
		return false
	}
	return f.addr == "" || e.addr.String() == f.addr || e.addr.IsValid() && e.addr.Addr().String() == f.addr
}

func serviceOf(n maps.ServiceName) string { return n.Namespace + "/" + n.Name }

func label(n maps.ServiceName) string {
	if n.Port == "" {
		return serviceOf(n)
	}
	return serviceOf(n) + ":" + n.Port
}

func rangeText(r *maps.Range) string {
	var flags []string
	for _, f := range []struct {
		bit  uint8
		name string
	}{{maps.RangeAffinity, "affinity"}, {maps.RangeGuarded, "guarded"}, {maps.RangeLocal, "local"}} {
		if r.Flags&f.bit != 0 {
			flags = append(flags, f.name)
		}
	}
	text := fmt.Sprintf("%d@%d", r.Count, r.Base)
	if r.Count == 0 {
		text = r.Empty()
	}
	if len(flags) > 0 {
		text += "(" + strings.Join(flags, ",") + ")"
	}
	return text
}

func dumpFrontends(_ *maps.Set, r *maps.Resolved) ([]entry, error) {
	var out []entry
	for i := range r.Frontends {
		f := &r.Frontends[i]
		proto := protocolName(f.Protocol)
		text := fmt.Sprintf("%s/%s id=%d gen=%d %s port-id=%d internal=%s external=%s", f.Addr, proto, f.ID, f.Generation, label(f.Name), f.ServicePort, rangeText(&f.Internal), rangeText(&f.External))
		if f.Affinity > 0 {
			text += fmt.Sprintf(" affinity=%ds", f.Affinity)
		}
		out = append(out, entry{Text: text, service: serviceOf(f.Name), addr: f.Addr, proto: proto})
	}
	owners := make([]netip.Addr, 0, len(r.Owners))
	for addr := range r.Owners {
		owners = append(owners, addr)
	}
	slices.SortFunc(owners, netip.Addr.Compare)
	for _, addr := range owners {
		other := "other ports are refused"
		if r.Owners[addr] == maps.AddressElsewhere {
			other = "served by another proxy, passed"
		}
		out = append(out, entry{Text: fmt.Sprintf("%s %s", addr, other), addr: netip.AddrPortFrom(addr, 0)})
	}
	return out, nil
}

func dumpSlots(_ *maps.Set, r *maps.Resolved) ([]entry, error) {
	var out []entry
	seen := map[uint32]bool{}
	for i := range r.Frontends {
		f := &r.Frontends[i]
		for _, x := range []*maps.Range{&f.Internal, &f.External} {
			for j, b := range x.Backends {
				slot := x.Base + uint32(j)
				if seen[slot] {
					continue
				}
				seen[slot] = true
				out = append(out, entry{
					Text:    fmt.Sprintf("%d backend=%d gen=%d %s %s", slot, b.ID, b.Generation, b.Addr, label(f.Name)),
					service: serviceOf(f.Name), addr: b.Addr, proto: protocolName(b.Protocol),
				})
			}
		}
	}
	return out, nil
}

func dumpBackends(_ *maps.Set, r *maps.Resolved) ([]entry, error) {
	var out []entry
	names := map[uint32]maps.ServiceName{}
	seen := map[maps.Backend]bool{}
	add := func(b maps.Backend, name maps.ServiceName) {
		if seen[b] {
			return
		}
		seen[b] = true
		proto := protocolName(b.Protocol)
		text := fmt.Sprintf("%s/%s id=%d gen=%d %s %s", b.Addr, proto, b.ID, b.Generation, backendState(b.Flags), label(name))
		for _, f := range []struct {
			bit  uint8
			name string
		}{{maps.BackendInCluster, " cluster"}, {maps.BackendInLocal, " local"}, {maps.BackendOnNode, " this-node"}} {
			if b.Flags&f.bit != 0 {
				text += f.name
			}
		}
		out = append(out, entry{Text: text, service: serviceOf(name), addr: b.Addr, proto: proto})
	}
	for i := range r.Frontends {
		f := &r.Frontends[i]
		names[f.ServicePort] = f.Name
		for _, x := range []*maps.Range{&f.Internal, &f.External} {
			for _, b := range x.Backends {
				add(b, f.Name)
			}
		}
	}
	for _, b := range r.Unnamed {
		add(b, names[b.ServicePort])
	}
	return out, nil
}

func dumpNodeAddrs(_ *maps.Set, r *maps.Resolved) ([]entry, error) {
	var out []entry
	for addr, hostOnly := range r.NodeAddrs {
		text := addr.String() + " serves NodePorts"
		if hostOnly {
			text += " inside the node's namespace"
		}
		out = append(out, entry{Text: text, addr: netip.AddrPortFrom(addr, 0)})
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Text, b.Text) })
	return out, nil
}

func dumpSources(_ *maps.Set, r *maps.Resolved) ([]entry, error) {
	var out []entry
	for i := range r.Frontends {
		f := &r.Frontends[i]
		for _, p := range f.Sources {
			out = append(out, entry{Text: fmt.Sprintf("%s lets %s in", label(f.Name), p), service: serviceOf(f.Name), addr: f.Addr})
		}
	}
	return out, nil
}

func dumpAffinity(set *maps.Set, r *maps.Resolved) ([]entry, error) {
	names := map[uint32]maps.ServiceName{}
	for i := range r.Frontends {
		names[r.Frontends[i].ServicePort] = r.Frontends[i].Name
	}
	var out []entry
	var err error
	for k, v := range set.Affinity.All(&err) {
		name := names[k.ServicePort]
		out = append(out, entry{Text: fmt.Sprintf("%s namespace=%d backend=%d gen=%d", label(name), k.Client[0], v.Backend, v.Generation), service: serviceOf(name)})
	}
	return out, err
}

func dumpSockRev(set *maps.Set, _ *maps.Resolved) ([]entry, error) {
	var out []entry
	var err error
	for k, v := range set.SockRev.All(&err) {
		if k.ByVip == 0 {
			continue // the same peer, by its other name
		}
		vip := netip.AddrPortFrom(maps.FromAddr16(v.Vip), maps.Port16(v.VipPort))
		backend := netip.AddrPortFrom(maps.FromAddr16(v.Backend), maps.Port16(v.BackendPort))
		out = append(out, entry{Text: fmt.Sprintf("socket=%d %s -> %s", k.Cookie, vip, backend), addr: vip, proto: service.UDP.String()})
	}
	return out, err
}

func dumpCounters(set *maps.Set, _ *maps.Resolved) ([]entry, error) {
	denied, err := set.Denied()
	var out []entry
	for _, d := range denied {
		out = append(out, entry{Text: fmt.Sprintf("%s %s calls=%d", d.Reason, d.Errno, d.Count)})
	}
	return out, err
}
