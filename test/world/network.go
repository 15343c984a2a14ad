// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The address plan of the package comment in code.
const (
	maxNodes    = 99 // hosts begin at 101
	firstHost   = 101
	gatewayLast = 254
)

func uplink4(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 100, byte(n)}) }

func uplink6(n int) netip.Addr {
	a := netip.MustParseAddr("fd00:192:168:100::").As16()
	a[15] = byte(n)
	return netip.AddrFrom16(a)
}

// podCIDRs returns the pod prefixes of node n. The node's number is written so
// that it reads the same in both families, hence at most 99 nodes.
func podCIDRs(n int) (v4, v6 netip.Prefix) {
	v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24)
	v6 = netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", n))
	return v4, v6
}

// nth returns address number n of the prefix, n < 256.
func nth(p netip.Prefix, n int) netip.Addr {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		a[3] = byte(n)
		return netip.AddrFrom4(a)
	}
	a := p.Addr().As16()
	a[15] = byte(n)
	return netip.AddrFrom16(a)
}

// buildFabric makes the switch that nodes' uplinks are plugged into. It owns
// the default gateway's addresses but does not forward: what a node sends to
// no known place is lost there, as a test of leaks needs it.
func (w *World) buildFabric() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	if w.fabric, err = w.newNamespace("switch"); err != nil {
		return err
	}
	return w.fabric.Do(func() error {
		if err := Sysctl("ipv4/ip_forward", "0"); err != nil {
			return err
		}
		return addBridge("sw0", prefixes(24, 64, uplink4(gatewayLast), uplink6(gatewayLast)))
	})
}

// plug connects eth0 of ns to the switch with addresses number n and a default
// route to the gateway.
func (w *World) plug(ns *Namespace, n int) error {
	if err := ns.addVeth("eth0", w.fabric, fmt.Sprintf("port%d", n), "sw0"); err != nil {
		return err
	}
	return ns.Do(func() error {
		if err := addAddresses("eth0", prefixes(24, 64, uplink4(n), uplink6(n))); err != nil {
			return err
		}
		return errors.Join(addDefault(uplink4(gatewayLast)), addDefault(uplink6(gatewayLast)))
	})
}

// buildNetwork gives the node its uplink, its bridge and the routes to the
// pods of the other nodes, and them the routes to its own.
func (n *Node) buildNetwork() error {
	if err := n.world.plug(n.Namespace, n.index); err != nil {
		return err
	}
	v4, v6 := n.PodCIDRs()
	err := n.Do(func() error {
		err := errors.Join(
			Sysctl("ipv4/ip_forward", "1"),
			Sysctl("ipv6/conf/all/forwarding", "1"),
			Sysctl("ipv6/conf/default/forwarding", "1"),
			// What a node does not serve it routes back out, and would tell the
			// sender to go there itself: for five minutes it would.
			Sysctl("ipv4/conf/all/send_redirects", "0"),
			Sysctl("ipv4/conf/eth0/send_redirects", "0"),
		)
		if err != nil {
			return err
		}
		return addBridge("cni0", prefixes(v4.Bits(), v6.Bits(), nth(v4, 1), nth(v6, 1)))
	})
	if err != nil {
		return err
	}
	for _, other := range n.world.nodes {
		o4, o6 := other.PodCIDRs()
		if err := n.Do(func() error {
			return errors.Join(addRoute(o4, other.IPv4()), addRoute(o6, other.IPv6()))
		}); err != nil {
			return err
		}
		if err := other.Do(func() error {
			return errors.Join(addRoute(v4, n.IPv4()), addRoute(v6, n.IPv6()))
		}); err != nil {
			return err
		}
	}
	return nil
}

// buildNetwork gives the pod its eth0.
func (p *Pod) buildNetwork() error {
	if err := p.addVeth("eth0", p.node.Namespace, p.link, "cni0"); err != nil {
		return err
	}
	v4, v6 := p.node.PodCIDRs()
	return p.Do(func() error {
		if err := addAddresses("eth0", prefixes(v4.Bits(), v6.Bits(), p.ipv4, p.ipv6)); err != nil {
			return err
		}
		var errs []error
		if p.ipv4.IsValid() {
			errs = append(errs, addDefault(nth(v4, 1)))
		}
		if p.ipv6.IsValid() {
			errs = append(errs, addDefault(nth(v6, 1)))
		}
		return errors.Join(errs...)
	})
}

// prefixes pairs addresses with the prefix length of their family and leaves
// out invalid ones.
func prefixes(bits4, bits6 int, addrs ...netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		switch {
		case a.Is4():
			out = append(out, netip.PrefixFrom(a, bits4))
		case a.Is6():
			out = append(out, netip.PrefixFrom(a, bits6))
		}
	}
	return out
}

// addVeth makes the link name in n and its other end peer as a port of the
// bridge in other; both are up afterwards. The near end comes up first, so that
// the bridge sees a port with a carrier from its first moment.
func (n *Namespace) addVeth(name string, other *Namespace, peer, bridge string) error {
	err := n.Do(func() error {
		veth := &netlink.Veth{
			LinkAttrs:     netlink.NewLinkAttrs(),
			PeerName:      peer,
			PeerNamespace: netlink.NsFd(other.handle),
		}
		veth.Name = name
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s: %w", name, err)
		}
		return setUp(name)
	})
	if err != nil {
		return err
	}
	return other.Do(func() error {
		port, err := netlink.LinkByName(peer)
		if err != nil {
			return err
		}
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(port, master); err != nil {
			return fmt.Errorf("add port %s to %s: %w", peer, bridge, err)
		}
		return setUp(peer)
	})
}

// addBridge makes a bridge with addresses in the current namespace.
func addBridge(name string, addrs []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	// A bridge without a set address takes that of its lowest port and
	// changes it as ports come and go, behind the back of every neighbour.
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0, 0, 0, 0, 0xfe}
	// Snooping without a querier can swallow neighbour solicitations.
	snooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	if err := addAddresses(name, addrs); err != nil {
		return err
	}
	return setUp(name)
}

func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// addAddresses adds addresses to a link of the current namespace, usable at
// once.
func addAddresses(name string, addrs []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	return nil
}

// addRoute adds a route to the current namespace.
func addRoute(to netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", to, via, err)
	}
	return nil
}

func addDefault(via netip.Addr) error {
	return addRoute(netip.PrefixFrom(via, 0).Masked(), via)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// deleteLink removes a link of the node; one that is gone is fine.
func (n *Node) deleteLink(name string) error {
	return n.Do(func() error {
		link, err := netlink.LinkByName(name)
		var notFound netlink.LinkNotFoundError
		if errors.As(err, &notFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// Switch is the namespace of the switch that nodes and hosts are plugged into,
// for settings of its ports. It is there after the first node or host.
func (w *World) Switch() *Namespace {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fabric
}
