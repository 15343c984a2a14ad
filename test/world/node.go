// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Node stands for a Kubernetes node: a namespace with the uplink eth0 and the
// bridge cni0 for its pods, a cgroup that holds everything that runs on it,
// and a bpffs. Its methods may be called concurrently.
type Node struct {
	*Namespace
	world *World
	index int
	dir   string
	cg    string
	last  int // number of the last pod address given; guarded by world.mu
}

// AddNode makes a node named name and connects it with all others: their pods
// reach each other over IPv4 and IPv6.
func (w *World) AddNode(name string) (*Node, error) {
	if err := w.guard(); err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	n := &Node{
		world: w,
		index: len(w.nodes) + 1,
		dir:   filepath.Join(w.dir, name),
		cg:    filepath.Join(w.cgroups, name),
		last:  1, // the bridge's
	}
	if err := n.build(name); err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	w.nodes = append(w.nodes, n)
	return n, nil
}

func (n *Node) build(name string) error {
	if n.index > maxNodes {
		return fmt.Errorf("a world holds %d nodes", maxNodes)
	}
	if err := os.Mkdir(n.cg, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return err
	}
	mount := filepath.Join(n.dir, "bpf")
	if err := os.Mkdir(mount, 0o700); err != nil {
		return err
	}
	// Every mount of a bpffs is a file system of its own, so nothing pinned
	// here is seen anywhere else and all of it goes with the mount.
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	if err := os.Mkdir(n.BPFFS(), 0o700); err != nil {
		return err
	}
	var err error
	if n.Namespace, err = n.world.newNamespace(name); err != nil {
		return err
	}
	return n.buildNetwork()
}

// CgroupRoot is the directory of the node's cgroup, above those of its pods
// and host processes: what an agent gets as --cgroup-root.
func (n *Node) CgroupRoot() string { return n.cg }

// BPFFS is an empty directory in the node's own bpffs: what an agent gets as
// --bpffs-root.
func (n *Node) BPFFS() string { return filepath.Join(n.dir, "bpf", "portolan") }

// Dir is a directory for the node's files, removed with the world.
func (n *Node) Dir() string { return n.dir }

// Socket is a path for the agent's socket.
func (n *Node) Socket() string { return filepath.Join(n.dir, "agent.sock") }

// AgentFlags returns the flags that tie an agent to this node: its name,
// cgroup, bpffs and socket. Addresses to listen on are off.
func (n *Node) AgentFlags() []string {
	return []string{
		"--node-name", n.Name(),
		"--cgroup-root", n.CgroupRoot(),
		"--bpffs-root", n.BPFFS(),
		"--socket", n.Socket(),
		"--healthz-bind-address", "",
		"--metrics-bind-address", "",
		"--state-dir", n.Dir(),
	}
}

// IPv4 and IPv6 are the addresses of the node's uplink.
func (n *Node) IPv4() netip.Addr { return uplink4(n.index) }

// IPv6 is the IPv6 address of the node's uplink.
func (n *Node) IPv6() netip.Addr { return uplink6(n.index) }

// PodCIDRs returns the IPv4 and the IPv6 prefix of the node's pods.
func (n *Node) PodCIDRs() (v4, v6 netip.Prefix) { return podCIDRs(n.index) }

// Host makes a place for host-network processes: the node's namespace, and a
// cgroup named name below the node's.
func (n *Node) Host(name string) (*Place, error) {
	if err := n.world.guard(); err != nil {
		return nil, err
	}
	defer n.world.mu.Unlock()
	return n.world.newPlace(n.Namespace, name, filepath.Join(n.cg, name))
}

// Family says which addresses a pod has.
type Family int

// The families a pod can have.
const (
	DualStack Family = iota
	IPv4Only
	IPv6Only
)

// PodConfig describes a pod. The zero value is a dual-stack pod with the next
// free addresses.
type PodConfig struct {
	Family Family
	// IPv4 and IPv6 fix an address within the node's pod CIDRs.
	IPv4, IPv6 netip.Addr
	// Bare leaves the pod without a link and without addresses: a namespace
	// and a cgroup, for a test that has somebody else lay the network.
	Bare bool
}

// Pod is a namespace whose eth0 hangs on its node's bridge, and a cgroup below
// the node's.
type Pod struct {
	*Place
	node       *Node
	ipv4, ipv6 netip.Addr
	link       string // the bridge's end of the veth pair
}

// AddPod makes a pod. Its name is unique in the world.
func (n *Node) AddPod(name string, configs ...PodConfig) (*Pod, error) {
	if err := n.world.guard(); err != nil {
		return nil, err
	}
	defer n.world.mu.Unlock()
	var config PodConfig
	if len(configs) > 0 {
		config = configs[0]
	}
	p, err := n.addPod(name, config)
	if err != nil {
		return nil, fmt.Errorf("make pod %s: %w", name, err)
	}
	return p, nil
}

func (n *Node) addPod(name string, config PodConfig) (*Pod, error) {
	n.last++
	v4, v6 := n.PodCIDRs()
	p := &Pod{
		node: n,
		ipv4: nth(v4, n.last),
		ipv6: nth(v6, n.last),
		link: fmt.Sprintf("veth%d", n.last),
	}
	if config.IPv4.IsValid() {
		p.ipv4 = config.IPv4
	}
	if config.IPv6.IsValid() {
		p.ipv6 = config.IPv6
	}
	switch config.Family {
	case IPv4Only:
		p.ipv6 = netip.Addr{}
	case IPv6Only:
		p.ipv4 = netip.Addr{}
	}
	ns, err := n.world.newNamespace(name)
	if err != nil {
		return nil, err
	}
	if p.Place, err = n.world.newPlace(ns, name, filepath.Join(n.cg, "pod-"+name)); err != nil {
		return nil, err
	}
	if config.Bare {
		p.ipv4, p.ipv6 = netip.Addr{}, netip.Addr{}
		return p, nil
	}
	if err := p.buildNetwork(); err != nil {
		return nil, err
	}
	return p, nil
}

// Node is where the pod runs.
func (p *Pod) Node() *Node { return p.node }

// IPv4 is the pod's IPv4 address; invalid in an IPv6-only or bare pod.
func (p *Pod) IPv4() netip.Addr { return p.ipv4 }

// IPv6 is the pod's IPv6 address; invalid in an IPv4-only or bare pod.
func (p *Pod) IPv6() netip.Addr { return p.ipv6 }

// Remove kills the pod's processes and removes its link, namespace and cgroup.
// Its address is not given out again.
func (p *Pod) Remove() error {
	w := p.node.world
	if err := p.Place.remove(); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.Name(), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil // Close removes the rest
	}
	w.namespaces = slices.DeleteFunc(w.namespaces, func(ns *Namespace) bool { return ns == p.Namespace })
	if err := errors.Join(p.node.deleteLink(p.link), p.Namespace.remove()); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.Name(), err)
	}
	return nil
}
