// SPDX-License-Identifier: Apache-2.0

// Package node finds out what the kernel knows of this node: its addresses,
// and the one it would use towards the outside. It follows changes through
// netlink. What serves NodePorts is decided by the pure function NodePortAddrs.
//
// It imports the netlink library and nothing of ours.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Facts are the addresses of the network namespace the agent runs in.
type Facts struct {
	// Addrs are all usable unicast addresses, loopback included.
	Addrs []netip.Addr
	// Source4 and Source6 are the source addresses of the default routes; the
	// zero address where there is no route.
	Source4, Source6 netip.Addr
}

// Read takes stock.
func Read() (Facts, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return Facts{}, fmt.Errorf("list addresses of this node: %w", err)
	}
	var f Facts
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		// A tentative address is not usable yet, and a link-local one means
		// something else on every link.
		if !ok || addr.IsLinkLocalUnicast() || a.Flags&unix.IFA_F_TENTATIVE != 0 {
			continue
		}
		f.Addrs = append(f.Addrs, addr)
	}
	// Addresses of documentation blocks: only the route to them is asked for.
	f.Source4 = sourceTowards(net.IPv4(192, 0, 2, 1))
	f.Source6 = sourceTowards(net.ParseIP("2001:db8::1"))
	if !f.Source4.IsValid() {
		f.Source4 = f.firstGlobal(netip.Addr.Is4)
	}
	if !f.Source6.IsValid() {
		f.Source6 = f.firstGlobal(netip.Addr.Is6)
	}
	return f, nil
}

func sourceTowards(ip net.IP) netip.Addr {
	routes, err := netlink.RouteGet(ip)
	if err != nil || len(routes) == 0 {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(routes[0].Src)
	return addr.Unmap()
}

func (f *Facts) firstGlobal(family func(netip.Addr) bool) netip.Addr {
	for _, a := range f.Addrs {
		if family(a) && !a.IsLoopback() {
			return a
		}
	}
	return netip.Addr{}
}

// Change says what changed of this node.
type Change struct {
	// Routes: a way through the network may differ (routes, neighbours, links).
	Routes bool
	// Facts: addresses, routes or links differ, which Read and ReadLinks tell.
	Facts bool
}

// Watch calls changed after every change until ctx ends. It must be started
// before Read for nothing to be missed; bursts come as one call.
func Watch(ctx context.Context, changed func(Change)) error {
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	links := make(chan netlink.LinkUpdate, 64)
	neighbours := make(chan netlink.NeighUpdate, 64)
	xdp := make(chan struct{})
	if err := errors.Join(
		netlink.AddrSubscribe(addrs, ctx.Done()), netlink.RouteSubscribe(routes, ctx.Done()),
		netlink.LinkSubscribe(links, ctx.Done()), netlink.NeighSubscribe(neighbours, ctx.Done()),
		watchXDP(ctx, xdp),
	); err != nil {
		return fmt.Errorf("watch this node's network: %w", err)
	}
	known := map[neighbour]string{}
	for {
		var c Change
		var ok bool
		var n netlink.NeighUpdate
		select {
		case <-ctx.Done():
			return nil
		case _, ok = <-addrs:
			c = Change{Routes: true, Facts: true}
		case _, ok = <-routes:
			c = Change{Routes: true, Facts: true}
		case _, ok = <-links:
			c = Change{Routes: true, Facts: true}
		case <-xdp:
			c, ok = Change{Facts: true}, true
		case n, ok = <-neighbours:
			c.Routes = ok && moved(known, &n)
		}
		if !ok {
			return ended(ctx)
		}
		for drained(addrs) || drained(routes) || drained(links) {
			c.Routes, c.Facts = true, true
		}
		if c.Routes || c.Facts {
			changed(c)
		}
	}
}

// drained takes one more update of a burst, if there is one.
func drained[T any](updates <-chan T) bool {
	select {
	case _, ok := <-updates:
		return ok
	default:
		return false
	}
}

type neighbour struct {
	link int
	addr netip.Addr
}

// moved tells whether a neighbour has another link address than it had. The
// kernel reports neighbours whenever it has doubts, which changes no way.
func moved(known map[neighbour]string, n *netlink.NeighUpdate) bool {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return false
	}
	key := neighbour{n.LinkIndex, addr.Unmap()}
	mac := n.HardwareAddr.String()
	if n.Type == unix.RTM_DELNEIGH || n.State&unix.NUD_FAILED != 0 {
		mac = ""
	}
	had, knew := known[key]
	switch {
	case mac == "":
		delete(known, key)
		return knew
	case n.State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE|unix.NUD_PERMANENT|unix.NUD_NOARP) == 0:
		return false
	}
	known[key] = mac
	// What was never known was never used either: a way without a neighbour is
	// looked up with every packet.
	return knew && had != mac
}

func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return errors.New("watch this node's network: the kernel ended the subscription")
}
