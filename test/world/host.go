// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// Host is a machine outside the cluster, on the same network as the nodes'
// uplinks. Its cgroup is outside every node's.
type Host struct {
	*Place
	number int
}

// AddHost makes a host.
func (w *World) AddHost(name string) (*Host, error) {
	if err := w.guard(); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	h := &Host{number: firstHost + w.hosts}
	w.hosts++
	if h.number >= gatewayLast {
		return nil, fmt.Errorf("make host %s: a world holds %d hosts", name, gatewayLast-firstHost)
	}
	ns, err := w.newNamespace(name)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	if err := w.plug(ns, h.number); err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	if h.Place, err = w.newPlace(ns, name, filepath.Join(w.cgroups, "host-"+name)); err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	return h, nil
}

// IPv4 is the host's IPv4 address.
func (h *Host) IPv4() netip.Addr { return uplink4(h.number) }

// IPv6 is the host's IPv6 address.
func (h *Host) IPv6() netip.Addr { return uplink6(h.number) }

// RouteBy makes the host send to networks by way of a node.
func (h *Host) RouteBy(n *Node, networks ...string) error {
	return h.Do(func() error {
		for _, text := range networks {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			via := n.IPv4()
			if p.Addr().Is6() {
				via = n.IPv6()
			}
			if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: via.AsSlice()}); err != nil {
				return fmt.Errorf("route of %s to %s: %w", h.Name(), p, err)
			}
		}
		return nil
	})
}
