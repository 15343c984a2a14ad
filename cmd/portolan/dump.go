// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
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
	Service string `json:"service,omitempty"`
	// Address is of the frontend or backend, without a port where it has none.
	Address  string `json:"address,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	addr     netip.AddrPort
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
	raw                  bool
}

// dumpers read one table each, by the name operators give it.
var dumpers = map[string]func(*maps.Set, *maps.Resolved) ([]entry, error){
	"frontends": dumpFrontends, "slots": dumpSlots, "backends": dumpBackends,
	"node-addrs": dumpNodeAddrs, "sources": dumpSources, "affinity": dumpAffinity,
	"sock-rev": dumpSockRev, "counters": dumpCounters,
	"flows": dumpFlows, "refusals": dumpRefusals, "tunnel-ends": dumpTunnelEnds,
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
  portolan dump all --addr 10.96.0.10
  portolan dump node-addrs --raw          # keys and values as bytes`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: append(mapNames(), "all"),
		RunE:      func(_ *cobra.Command, args []string) error { return dumpMap(env, args[0], &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.service, "service", "", "only entries of this `NAMESPACE/NAME`")
	flags.StringVar(&f.addr, "addr", "", "only entries of this `IP[:PORT]`")
	flags.StringVar(&f.proto, "proto", "", "only entries of this `PROTOCOL`")
	flags.BoolVar(&f.raw, "raw", false, "keys and values as the bytes they are, of every table behind MAP; takes --limit only")
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
	if err := f.validate(); err != nil {
		return err
	}
	set, err := env.tables()
	if err != nil {
		return err
	}
	defer set.Close()
	read := f.readable
	if f.raw {
		read = f.bytes
	}
	items, err := read(set, names)
	if err != nil {
		return err
	}
	return printDump(env, items, what == "all" || f.raw)
}

func printDump(env *environment, items []entry, named bool) error {
	var names []string
	for _, e := range items {
		key, _, _ := strings.Cut(e.Text, " ")
		names = append(names, e.Map+"/"+key)
	}
	out := dump{Meta: api.Meta{APIVersion: api.Version, Kind: "Dump"}, Items: items}
	if done, err := env.machine(out, names); done || err != nil {
		return err
	}
	for _, e := range items {
		if named {
			fmt.Fprintf(env.out, "%-15s", e.Map)
		}
		fmt.Fprintln(env.out, e.Text)
	}
	return nil
}

// readable reads tables by the names operators give them.
func (f *dumpFilter) readable(set *maps.Set, names []string) ([]entry, error) {
	resolved, err := set.Resolve()
	if err != nil {
		return nil, err
	}
	out := []entry{}
	for _, name := range names {
		list, err := dumpers[name](set, resolved)
		if err != nil {
			return nil, fmt.Errorf("dump %s: %w", name, err)
		}
		list = slices.DeleteFunc(list, func(e entry) bool { return !f.wants(&e) })
		if f.limit > 0 {
			list = list[:min(f.limit, len(list))]
		}
		for i := range list {
			list[i].Map, list[i].Address = name, addressText(list[i].addr)
		}
		out = append(out, list...)
	}
	return out, nil
}

func addressText(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// validate makes addresses comparable and finds what cannot be meant.
func (f *dumpFilter) validate() error {
	if f.raw && (f.service != "" || f.addr != "" || f.proto != "") {
		return errors.New("--raw shows entries as bytes, which --service, --addr and --proto cannot choose among: leave them out")
	}
	if f.addr == "" {
		return nil
	}
	if a, err := netip.ParseAddr(f.addr); err == nil {
		f.addr = a.String()
	} else if ap, err := netip.ParseAddrPort(f.addr); err == nil {
		f.addr = ap.String()
	} else {
		return fmt.Errorf("--addr %s: use IP or IP:PORT, [IP]:PORT for IPv6", f.addr)
	}
	return nil
}

func (f *dumpFilter) wants(e *entry) bool {
	if f.service != "" && e.Service != f.service || f.proto != "" && !strings.EqualFold(e.Protocol, f.proto) {
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
	}{{maps.RangeAffinity, "affinity"}, {maps.RangeGuarded, "guarded"}, {maps.RangeLocal, "local"}, {maps.RangeInside, "inside only"}, {maps.RangeMaglev, "maglev"}, {maps.RangeDSR, "dsr"}} {
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
		out = append(out, entry{Text: text, Service: serviceOf(f.Name), addr: f.Addr, Protocol: proto})
	}
	owners := make([]netip.Addr, 0, len(r.Owners))
	for addr := range r.Owners {
		owners = append(owners, addr)
	}
	slices.SortFunc(owners, netip.Addr.Compare)
	for _, addr := range owners {
		other := "other ports are refused"
		switch r.Owners[addr] {
		case maps.AddressElsewhere:
			other = "served by another proxy, passed"
		case maps.AddressPublished:
			other = "other ports are refused on the wire, passed for sockets"
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
				slot := x.Slots[j]
				if seen[slot] {
					continue
				}
				seen[slot] = true
				out = append(out, entry{
					Text:    fmt.Sprintf("%d backend=%d gen=%d %s %s", slot, b.ID, b.Generation, b.Addr, label(f.Name)),
					Service: serviceOf(f.Name), addr: b.Addr, Protocol: protocolName(b.Protocol),
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
		out = append(out, entry{Text: text, Service: serviceOf(name), addr: b.Addr, Protocol: proto})
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
			out = append(out, entry{Text: fmt.Sprintf("%s lets %s in", label(f.Name), p), Service: serviceOf(f.Name), addr: f.Addr})
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
		client := fmt.Sprintf("namespace=%d", k.Client[0])
		if k.ByAddress != 0 {
			client = "client=" + maps.AffinityClient(k).String()
		}
		out = append(out, entry{Text: fmt.Sprintf("%s %s backend=%d gen=%d", label(name), client, v.Backend, v.Generation), Service: serviceOf(name)})
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
		out = append(out, entry{Text: fmt.Sprintf("socket=%d %s -> %s", k.Cookie, vip, backend), addr: vip, Protocol: service.UDP.String()})
	}
	return out, err
}

func dumpCounters(set *maps.Set, _ *maps.Resolved) ([]entry, error) {
	denied, err := set.Denied()
	var out []entry
	for _, d := range denied {
		out = append(out, entry{Text: fmt.Sprintf("%s %s count=%d", d.Reason, cmp.Or(d.Errno, "packets"), d.Count)})
	}
	return out, err
}
