// SPDX-License-Identifier: Apache-2.0

// Package node finds out what the kernel knows of this node: its addresses,
// and the one it would use towards the outside. It follows changes through
// netlink. What serves NodePorts is decided by the pure function NodePortAddrs.
//
// It imports the netlink library and nothing of ours.
package node

import (
	"context"
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

// Watch calls changed after every change of addresses or routes until ctx
// ends. It must be started before Read for nothing to be missed; bursts come
// as one call.
func Watch(ctx context.Context, changed func()) error {
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		return fmt.Errorf("watch addresses of this node: %w", err)
	}
	if err := netlink.RouteSubscribe(routes, ctx.Done()); err != nil {
		return fmt.Errorf("watch routes of this node: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-addrs:
			if !ok {
				return ended(ctx)
			}
		case _, ok := <-routes:
			if !ok {
				return ended(ctx)
			}
		}
		for len(addrs) > 0 {
			<-addrs
		}
		for len(routes) > 0 {
			<-routes
		}
		changed()
	}
}

func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch addresses of this node: the kernel ended the subscription")
}
