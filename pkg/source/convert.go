// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"portolan.dev/portolan/pkg/service"
)

// Converter turns API objects into the model. Objects may be such as no API
// server would admit, for they also come from files. It is immutable and may
// be used by several goroutines.
type Converter struct {
	// ProxyName is --service-proxy-name: which Services are ours.
	ProxyName string
	// ExternalIPs is --external-ip-cidrs: the only external IPs that are served;
	// nil: all of them. Whoever may write Services can claim any address.
	ExternalIPs []netip.Prefix
}

// ObjectName is how an object is named in problems, and their key in an
// Update: "Service default/web", "Node n1".
func ObjectName(kind, namespace, name string) string {
	if namespace == "" {
		return kind + " " + name
	}
	return kind + " " + namespace + "/" + name
}

// maxFaults is how many problems of one object are told one by one. A slice of
// a thousand bad endpoints is one mistake, and has to read as one.
const maxFaults = 16

// faults gathers what is wrong with one object.
type faults struct {
	kind, namespace, name string
	list                  []service.Problem
	untold                int
}

func (f *faults) add(reason, format string, args ...any) {
	if len(f.list) == maxFaults {
		f.untold++
		return
	}
	f.list = append(f.list, service.Problem{
		Object: ObjectName(f.kind, f.namespace, f.name), Reason: reason, Message: fmt.Sprintf(format, args...),
	})
}

// all returns the problems, nil if there are none.
func (f *faults) all() []service.Problem {
	if f.untold > 0 {
		f.list[maxFaults-1].Message += fmt.Sprintf("; and %d more parts of this object are not used", f.untold)
	}
	return f.list
}

// field names a part of an object, element index of a list if that is not
// negative. It is spelt out only when there is something to say of it.
type field struct {
	path  string
	index int
	rest  string
}

// of names an element of a list.
func of(path string, index int) field { return field{path: path, index: index} }

// plain names a field that is no list.
func plain(path string) field { return field{path: path, index: -1} }

// sub names a field within an element.
func (f field) sub(rest string) field { return field{f.path, f.index, f.rest + rest} }

func (f field) String() string {
	if f.index < 0 {
		return f.path + f.rest
	}
	return f.path + "[" + strconv.Itoa(f.index) + "]" + f.rest
}

// addr reads an address; what is none is left out. An IPv4-mapped address is
// the IPv4 address.
func (f *faults) addr(at field, text string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return a.Unmap(), true
	}
	if a, ok := withoutLeadingZeros(text); ok {
		f.add(service.ReasonLeadingZeros, "%s %q has leading zeros: it is read as %s; write it so", at, text, a)
		return a, true
	}
	f.add(service.ReasonInvalidAddress, "%s %q is not an IP address and is not used; write one such as 10.96.0.10 or fd00::10", at, text)
	return netip.Addr{}, false
}

// withoutLeadingZeros reads an IPv4 address as old API servers let it in:
// decimal, whatever zeros stand in front.
func withoutLeadingZeros(text string) (netip.Addr, bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	var b [4]byte
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		b[i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}

func (f *faults) port(at field, n int32) (uint16, bool) {
	if n < 1 || n > math.MaxUint16 {
		f.add(service.ReasonInvalidPort, "%s %d is not a port and is not served; use 1 to 65535", at, n)
		return 0, false
	}
	return uint16(n), true
}

func (f *faults) protocol(at field, p corev1.Protocol) (service.Protocol, bool) {
	protocol, err := service.ParseProtocol(string(p))
	if err != nil {
		f.add(service.ReasonUnknownProtocol, "%s is not served: %v", at, err)
		return 0, false
	}
	return protocol, true
}

// prefix reads a range, with blank space around it. Its host bits are cleared.
func (f *faults) prefix(at field, text string) (netip.Prefix, bool) {
	text = strings.TrimSpace(text)
	p, err := netip.ParsePrefix(text)
	if err != nil {
		zeros, ok := rangeWithoutLeadingZeros(text)
		if !ok {
			f.add(service.ReasonInvalidRange, "%s %q is not a CIDR and is left out; write one such as 192.0.2.0/24", at, text)
			return netip.Prefix{}, false
		}
		f.add(service.ReasonLeadingZeros, "%s %q has leading zeros: it is read as %s; write it so", at, text, zeros)
		p = zeros
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			f.add(service.ReasonInvalidRange, "%s %q mixes IPv4 and IPv6 and is left out; write one such as 192.0.2.0/24", at, text)
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// rangeWithoutLeadingZeros reads a range that has some in its address, in its
// length, or in both.
func rangeWithoutLeadingZeros(text string) (netip.Prefix, bool) {
	host, length, _ := strings.Cut(text, "/")
	bits, err := strconv.ParseUint(length, 10, 8)
	if err != nil {
		return netip.Prefix{}, false
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		var ok bool
		if a, ok = withoutLeadingZeros(host); !ok {
			return netip.Prefix{}, false
		}
	}
	p := netip.PrefixFrom(a.WithZone(""), int(bits))
	return p, p.IsValid() && a.Zone() == ""
}

// special tells whether an address can be neither a Service's nor an
// endpoint's, by the rules of the API.
func special(a netip.Addr) bool { return !a.IsGlobalUnicast() }

const specialKinds = "it is unspecified, loopback, link-local, multicast or broadcast"

// interned returns one string for all equal ones: names of nodes, zones and
// namespaces come again in every object, each time in new memory.
func interned(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// Node converts the Node object of this node.
func (c *Converter) Node(obj *corev1.Node) (service.Node, []service.Problem) {
	f := &faults{kind: "Node", name: obj.Name}
	n := service.Node{Name: obj.Name, Zone: obj.Labels[corev1.LabelTopologyZone], Leaving: leaving(obj)}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for i, a := range obj.Status.Addresses {
			if a.Type != kind {
				continue
			}
			if addr, ok := f.addr(of("status.addresses", i), a.Address); ok {
				n.Addresses = append(n.Addresses, addr)
			}
		}
	}
	return n, f.all()
}

// taintToBeDeleted is what the cluster autoscaler puts on a node that it is
// about to remove.
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// leaving says why a node should get no new connections. No other taint, and
// no cordon, is a reason: those are about pods.
func leaving(obj *corev1.Node) string {
	if !obj.DeletionTimestamp.IsZero() {
		return "the node is being deleted"
	}
	for i := range obj.Spec.Taints {
		if obj.Spec.Taints[i].Key == taintToBeDeleted {
			return "the node has the taint " + taintToBeDeleted
		}
	}
	return ""
}

// ServiceCIDR converts a ServiceCIDR object.
func (c *Converter) ServiceCIDR(obj *networkingv1.ServiceCIDR) ([]netip.Prefix, []service.Problem) {
	f := &faults{kind: "ServiceCIDR", name: obj.Name}
	var out []netip.Prefix
	for i, text := range obj.Spec.CIDRs {
		if p, ok := f.prefix(of("spec.cidrs", i), text); ok {
			out = append(out, p)
		}
	}
	return out, f.all()
}
