// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/service"
)

// Node is what the tables say about this node.
type Node struct {
	// Addresses are all that this node has: what no Service has on them is the
	// node's own, also where an external IP is one of them.
	Addresses []netip.Addr
	// NodePortAddrs, of them, serve NodePorts; those with true do so only for
	// sockets of the node's own network namespace (loopback).
	NodePortAddrs map[netip.Addr]bool
	// ServiceCIDRs: an address inside that no Service has is refused. At most
	// MaxServiceCIDRs are used.
	ServiceCIDRs []netip.Prefix
	// InsideCIDRs are addresses whose traffic is the cluster's own, wherever it
	// comes in: pods'. At most MaxServiceCIDRs are used.
	InsideCIDRs []netip.Prefix
	// Masquerade are the source ports of masqueraded flows.
	Masquerade PortRange
	// Devices are the links that traffic may leave by.
	Devices []Device
	// Source4 and Source6 are the addresses that this node's own sockets have
	// towards the outside; the zero address where there is none.
	Source4, Source6 netip.Addr
}

// PortRange is a range of ports, ends included.
type PortRange struct{ First, Last uint16 }

// Device is a link as the wire programs need to know it.
type Device struct {
	Index uint32
	// Source4 and Source6 are this node's addresses on it, if it has some.
	Source4, Source6 netip.Addr
	// XDPTarget: it takes frames that XDP programs redirect.
	XDPTarget bool
	// Inward: it leads to what is on this node, and no program sees what comes
	// in by it.
	Inward bool
	// NoLinkHeader: its packets begin with the IP header.
	NoLinkHeader bool
}

// MaxServiceCIDRs is what the tables have room for.
const MaxServiceCIDRs = len(bpf.LbCidrSet{}.Cidrs)

func (n *Node) count(family service.Family) uint32 {
	count := uint32(0)
	for addr := range n.NodePortAddrs {
		if service.FamilyOf(addr) == family {
			count++
		}
	}
	return count
}

// ApplyNode makes the tables say what is true of this node now. Before the
// first Apply it is only remembered.
func (r *Reconciler) ApplyNode(n Node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.attached {
		r.node = n
		return nil
	}
	return r.applyNode(n)
}

func (r *Reconciler) applyNode(n Node) error {
	err := errors.Join(r.applyAddresses(&n), r.applyNodeAddrs(n.NodePortAddrs), r.applyCIDRs(n.ServiceCIDRs), r.applyWire(&n))
	config := r.set.NodeConfig.At(0)
	for _, s := range []struct {
		addr netip.Addr
		to   *bpf.LbAddress
	}{{n.Source4, &config.NodeSource4}, {n.Source6, &config.NodeSource6}} {
		want := bpf.LbAddress{}
		if s.addr.IsValid() {
			want = maps.Addr16(s.addr)
		}
		if *s.to != want {
			*s.to = want
		}
	}
	r.node = n
	return err
}

// applyNodeAddrs compares with the table itself: it is small, and an earlier
// agent may have written it.
func (r *Reconciler) applyNodeAddrs(want map[netip.Addr]bool) error {
	have, err := r.nodeAddrs()
	if err != nil {
		return err
	}
	var errs []error
	for addr, hostOnly := range want {
		flags := uint32(0)
		if hostOnly {
			flags = maps.NodeAddrHostOnly
		}
		if current, ok := have[addr]; ok && current == flags {
			continue
		}
		if addr.Is4() {
			errs = append(errs, r.set.NodeAddrs4.Put(maps.Addr4(addr), flags))
		} else {
			errs = append(errs, r.set.NodeAddrs6.Put(maps.Addr16(addr), flags))
		}
	}
	for addr := range have {
		if _, ok := want[addr]; ok {
			continue
		}
		if addr.Is4() {
			errs = append(errs, r.set.NodeAddrs4.Delete(maps.Addr4(addr)))
		} else {
			errs = append(errs, r.set.NodeAddrs6.Delete(maps.Addr16(addr)))
		}
	}
	return errors.Join(errs...)
}

// Own is the set of this node's addresses. There may be as many as Services: some
// proxies give the node every ClusterIP.
func (n *Node) Own() map[netip.Addr]bool {
	own := make(map[netip.Addr]bool, len(n.Addresses))
	for _, addr := range n.Addresses {
		own[addr] = true
	}
	for addr := range n.NodePortAddrs {
		own[addr] = true
	}
	return own
}

// applyAddresses notes which addresses are this node's: what is not a Service's
// port there is the node's.
func (r *Reconciler) applyAddresses(n *Node) error {
	var errs []error
	note := func(addr netip.Addr, u *addressUse, here bool) {
		before, had := u.ownerValue()
		u.node = here
		errs = append(errs, r.ownerChanged(addr, u, before, had))
	}
	own := n.Own()
	for addr := range own {
		note(addr, r.address(addr), true)
	}
	for addr, u := range r.addresses {
		if u.node && !own[addr] {
			note(addr, u, false)
		}
	}
	return errors.Join(errs...)
}

func (r *Reconciler) nodeAddrs() (map[netip.Addr]uint32, error) {
	have := map[netip.Addr]uint32{}
	var err error
	for k, flags := range r.set.NodeAddrs4.All(&err) {
		have[maps.FromAddr4(k)] = flags
	}
	for k, flags := range r.set.NodeAddrs6.All(&err) {
		have[maps.FromAddr16(k)] = flags
	}
	if err != nil {
		return nil, fmt.Errorf("read node addresses: %w", err)
	}
	return have, nil
}

// applyCIDRs writes the set that is not in use and switches to it. The grace
// period before keeps programs from reading a set that is being written.
func (r *Reconciler) applyCIDRs(want []netip.Prefix) error {
	config := r.set.NodeConfig.At(0)
	active := config.ActiveCidrs & 1
	fresh := cidrSet(want)
	if fresh != config.Cidrs[active] {
		if err := r.quiesce(); err != nil {
			return err
		}
		config.Cidrs[1-active] = fresh
		r.set.NodeConfig.Store32(0, maps.NodeConfigCIDRs, 1-active)
	}
	if !r.attached || maps.CoverOf(&fresh) == r.cover {
		return nil
	}
	// Programs have it as constants.
	if err := r.loadPrograms(r.set); err != nil {
		return fmt.Errorf("load programs for the service CIDRs %v: %w", want, err)
	}
	return nil
}

// loadPrograms has programs loaded for a set of tables, and remembers for which
// service CIDRs.
func (r *Reconciler) loadPrograms(set *maps.Set) error {
	if err := r.cfg.Attach(set); err != nil {
		return err
	}
	config := set.NodeConfig.At(0)
	r.cover = maps.CoverOf(&config.Cidrs[config.ActiveCidrs&1])
	return nil
}

func cidrSet(want []netip.Prefix) bpf.LbCidrSet {
	want = want[:min(len(want), MaxServiceCIDRs)]
	set := bpf.LbCidrSet{Count: uint32(len(want))}
	for i, prefix := range want {
		set.Cidrs[i] = maps.CIDR(prefix)
	}
	return set
}

// quiesce waits until no program reads what an earlier switch put out of use.
func (r *Reconciler) quiesce() error {
	if !r.live {
		return nil
	}
	return r.cfg.Wait()
}

// useNodePort widens the range of ports that programs take for NodePorts.
func (r *Reconciler) useNodePort(port uint16) {
	r.nodePorts[port]++
	if r.nodePorts[port] == 1 {
		r.storeNodePortRange()
	}
}

func (r *Reconciler) unuseNodePort(port uint16) {
	r.nodePorts[port]--
	if r.nodePorts[port] == 0 {
		delete(r.nodePorts, port)
		r.storeNodePortRange()
	}
}

// storeNodePortRange publishes the lowest and the highest NodePort in use.
// While tables are being adopted the range only widens.
func (r *Reconciler) storeNodePortRange() {
	low, high := uint16(1), uint16(0)
	first := true
	widen := func(port uint16) {
		if first || port < low {
			low = port
		}
		if first || port > high {
			high = port
		}
		first = false
	}
	if config := r.set.NodeConfig.Load(0); r.found != nil && config.NodeportMin <= config.NodeportMax {
		widen(config.NodeportMin)
		widen(config.NodeportMax)
	}
	for port := range r.nodePorts {
		widen(port)
	}
	r.set.NodeConfig.Store32(0, maps.NodeConfigPorts, uint32(low)|uint32(high)<<16)
}

// Canonical sorts prefixes and drops what repeats, so that equal sets compare
// equal.
func Canonical(prefixes []netip.Prefix) []netip.Prefix {
	out := slices.Clone(prefixes)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
