// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"strings"
)

// Selection says which of this node's addresses serve NodePorts, as
// --nodeport-addresses writes it. The zero value is the default.
type Selection struct {
	all, primary, localhost bool
	cidrs                   []netip.Prefix
}

// ParseSelection reads CIDRs and the words all, primary and localhost.
func ParseSelection(list []string) (Selection, error) {
	var s Selection
	for _, item := range list {
		switch item = strings.TrimSpace(item); item {
		case "":
		case "all":
			s.all = true
		case "primary":
			s.primary = true
		case "localhost":
			s.localhost = true
		default:
			prefix, err := netip.ParsePrefix(item)
			if err != nil {
				return s, fmt.Errorf("--nodeport-addresses %s: neither a CIDR nor one of all, primary, localhost", item)
			}
			s.cidrs = append(s.cidrs, prefix.Masked())
		}
	}
	return s, nil
}

func (s Selection) unset() bool {
	return !s.all && !s.primary && !s.localhost && len(s.cidrs) == 0
}

// NodePortAddrs returns the addresses that serve NodePorts to sockets of this
// node and its pods; true marks those that do so only inside the node's own
// network namespace, because loopback means the pod in a pod.
//
// By default every address does, 127.0.0.1 and ::1 included. A list of CIDRs
// that names no address of one family counts as not given for that family, as
// in kube-proxy; loopback then needs the word localhost or a CIDR of its own.
func (s Selection) NodePortAddrs(f Facts, primary []netip.Addr) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, a := range f.Addrs {
		if s.serves(a, f, primary) {
			out[a] = a.IsLoopback()
		}
	}
	return out
}

func (s Selection) serves(a netip.Addr, f Facts, primary []netip.Addr) bool {
	if s.unset() {
		return true
	}
	if a.IsLoopback() {
		return s.localhost || s.all || s.contains(a, false)
	}
	if s.all || s.contains(a, true) {
		return true
	}
	if !s.primary && !s.localhost && !s.hasFamily(a) {
		return true
	}
	return s.primary && isPrimary(a, f, primary)
}

// contains tells whether a CIDR has the address; one that covers everything
// does not mean loopback.
func (s Selection) contains(a netip.Addr, zero bool) bool {
	for _, c := range s.cidrs {
		if c.Contains(a) && (zero || c.Bits() > 0) {
			return true
		}
	}
	return false
}

func (s Selection) hasFamily(a netip.Addr) bool {
	for _, c := range s.cidrs {
		if c.Addr().Is4() == a.Is4() {
			return true
		}
	}
	return false
}

// isPrimary: the Node object's first address of the family, else the one that
// the default route uses.
func isPrimary(a netip.Addr, f Facts, primary []netip.Addr) bool {
	for _, p := range primary {
		if p.Is4() == a.Is4() {
			return p == a
		}
	}
	return a == f.Source4 || a == f.Source6
}
