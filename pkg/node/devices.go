// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is a network device of this node.
type Link struct {
	Index int
	Name  string
	// Kind is "veth", "bridge", "vxlan", ...; "device" for hardware.
	Kind string
	Up   bool
	// Master is the index of the bridge or bond it is part of; 0 for none.
	Master int
	// LinkHeader: packets begin with an Ethernet header.
	LinkHeader bool
	Loopback   bool
	// Addrs are its global unicast addresses.
	Addrs []netip.Addr
	// Routes counts routes that leave by it; HostRoutes those of them to single
	// addresses, as CNI plugins lay them to pods.
	Routes, HostRoutes int
	// Default: a default route leaves by it.
	Default bool
}

// ReadLinks takes stock of the devices, by index.
func ReadLinks() ([]Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices of this node: %w", err)
	}
	out := make(map[int]*Link, len(links))
	for _, l := range links {
		a := l.Attrs()
		out[a.Index] = &Link{
			Index: a.Index, Name: a.Name, Kind: l.Type(), Master: a.MasterIndex,
			Up: a.RawFlags&unix.IFF_UP != 0, Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
			LinkHeader: len(a.HardwareAddr) == 6,
		}
	}
	if err := addAddresses(out); err != nil {
		return nil, err
	}
	if err := addRoutes(out); err != nil {
		return nil, err
	}
	list := make([]Link, 0, len(out))
	for _, l := range out {
		list = append(list, *l)
	}
	slices.SortFunc(list, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return list, nil
}

func addAddresses(links map[int]*Link) error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of this node: %w", err)
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); !ok || !addr.IsGlobalUnicast() || links[a.LinkIndex] == nil {
			continue
		}
		links[a.LinkIndex].Addrs = append(links[a.LinkIndex].Addrs, addr)
	}
	return nil
}

func addRoutes(links map[int]*Link) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes of this node: %w", err)
	}
	for i := range routes {
		r := &routes[i]
		for _, index := range routeLinks(r) {
			if l := links[index]; l != nil {
				l.addRoute(r)
			}
		}
	}
	return nil
}

func routeLinks(r *netlink.Route) []int {
	out := []int{r.LinkIndex}
	for _, hop := range r.MultiPath {
		out = append(out, hop.LinkIndex)
	}
	return out
}

func (l *Link) addRoute(r *netlink.Route) {
	if r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() || r.Dst != nil && r.Dst.IP.IsMulticast() {
		return
	}
	l.Routes++
	if r.Dst == nil {
		l.Default = true
		return
	}
	switch ones, bits := r.Dst.Mask.Size(); {
	case ones == 0:
		l.Default = true
	case ones == bits:
		l.HostRoutes++
	}
}

// overlays are devices that join nodes: answers from endpoints elsewhere may
// come in by them.
var overlays = []string{"vxlan", "geneve", "ipip", "ip6tnl", "sit", "gre", "gretap", "ip6gre", "wireguard", "tuntap"}

// Outward selects the devices whose traffic comes from outside the node: those
// that match a pattern (as of a shell), or, without patterns, all that carry a
// default route or an address of their own, and overlays. Bridges and parts of
// bridges, loopback, and devices that lead to a single pod are none.
func Outward(links []Link, patterns []string) []Link {
	var out []Link
	for i := range links {
		l := &links[i]
		if len(patterns) > 0 && matches(l.Name, patterns) || len(patterns) == 0 && l.outward(links) {
			out = append(out, *l)
		}
	}
	return out
}

func (l *Link) outward(all []Link) bool {
	switch {
	case !l.Up, l.Loopback, l.partOfBridge(all):
		return false
	case slices.Contains(overlays, l.Kind):
		return true
	case l.Kind == "bridge":
		// A host's own bridge, with its network card in it, leads outward; a
		// CNI plugin's has the pods' addresses on it and no default route.
		return l.Default
	case l.Default:
		return true
	}
	return len(l.Addrs) > 0 && l.Routes > l.HostRoutes
}

// partOfBridge: its traffic is seen on the bridge.
func (l *Link) partOfBridge(all []Link) bool {
	if l.Master == 0 {
		return false
	}
	return slices.ContainsFunc(all, func(m Link) bool { return m.Index == l.Master && m.Kind == "bridge" })
}

// Matching selects the devices that match a pattern.
func Matching(links []Link, patterns []string) []Link {
	var out []Link
	for _, l := range links {
		if l.Up && !l.Loopback && matches(l.Name, patterns) {
			out = append(out, l)
		}
	}
	return out
}

func matches(name string, patterns []string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

// ParsePatterns checks device patterns of the named flag.
func ParsePatterns(flag string, patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil || strings.TrimSpace(p) == "" {
			return fmt.Errorf("--%s %q: not a pattern; write a device's name or one such as eth*", flag, p)
		}
	}
	return nil
}
