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

// Watch calls changed after every change until ctx ends, and once when it has
// subscribed: who reads then misses nothing. Bursts come as one call. The kernel
// drops what does not fit into a subscription's buffer, and says so: then Watch
// subscribes again.
func Watch(ctx context.Context, changed func(Change)) error {
	known := map[neighbour]string{}
	for ctx.Err() == nil {
		s, err := subscribe(ctx)
		if err != nil {
			return fmt.Errorf("watch this node's network: %w", err)
		}
		changed(Change{Routes: true, Facts: true}) // anything may have, before
		s.follow(ctx, known, changed)
		s.end()
	}
	return nil
}

// subscriptions are those of one round; each channel but xdp is closed when
// the kernel has ended it.
type subscriptions struct {
	addrs      chan netlink.AddrUpdate
	routes     chan netlink.RouteUpdate
	links      chan netlink.LinkUpdate
	neighbours chan netlink.NeighUpdate
	xdp        chan struct{}
	end        func()
}

func subscribe(ctx context.Context) (*subscriptions, error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &subscriptions{
		make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64),
		make(chan netlink.LinkUpdate, 64), make(chan netlink.NeighUpdate, 64),
		make(chan struct{}), nil,
	}
	s.end = func() {
		cancel()
		// Who waits to send an update would not see that this is over.
		go discard(s.addrs)
		go discard(s.routes)
		go discard(s.links)
		go discard(s.neighbours)
	}
	err := errors.Join(
		netlink.AddrSubscribe(s.addrs, ctx.Done()), netlink.RouteSubscribe(s.routes, ctx.Done()), netlink.LinkSubscribe(s.links, ctx.Done()),
		// Ways may be in use already whose neighbours nothing was heard of.
		netlink.NeighSubscribeWithOptions(s.neighbours, ctx.Done(), netlink.NeighSubscribeOptions{ListExisting: true}),
		watchXDP(ctx, s.xdp),
	)
	if err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

func discard[T any](updates <-chan T) {
	for range updates {
	}
}

// follow calls changed until ctx or a subscription ends.
func (s *subscriptions) follow(ctx context.Context, known map[neighbour]string, changed func(Change)) {
	for {
		var c Change
		var ok bool
		var n netlink.NeighUpdate
		select {
		case <-ctx.Done():
			return
		case _, ok = <-s.addrs:
			c = Change{Routes: true, Facts: true}
		case _, ok = <-s.routes:
			c = Change{Routes: true, Facts: true}
		case _, ok = <-s.links:
			c = Change{Routes: true, Facts: true}
		case <-s.xdp:
			c, ok = Change{Facts: true}, true
		case n, ok = <-s.neighbours:
			c.Routes = ok && moved(known, &n)
		}
		if !ok {
			return
		}
		for drained(s.addrs) || drained(s.routes) || drained(s.links) {
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
	// What was never known was never used either: existing neighbours are told
	// first, and a way without one is looked up with every packet.
	return knew && had != mac
}
