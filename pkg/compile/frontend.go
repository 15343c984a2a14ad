// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"slices"

	"portolan.dev/portolan/pkg/service"
)

// frontendsOf lists the addresses that one port of a Service is reached by in
// one family, in the order in which the object names them. An address that the
// object names twice is one frontend: a load balancer address that is also an
// external IP stays guarded, as kube-proxy guards it.
//
// This node's own traffic to what is published outside takes endpoints
// anywhere in the cluster, whatever the external policy: it need not go out to
// come back in.
func frontendsOf(list []Frontend, obj *service.Service, sp *service.Port, family service.Family, guarded bool) []Frontend {
	inside, outside := policy(obj.InternalLocal), policy(obj.ExternalLocal)
	add := func(addr netip.Addr, number uint16, f Frontend) {
		if service.FamilyOf(addr) != family {
			return
		}
		f.FrontendKey = FrontendKey{netip.AddrPortFrom(addr, number), sp.Protocol}
		for i := range list {
			if list[i].Addr == f.Addr {
				return
			}
		}
		list = append(list, f)
	}
	for _, a := range obj.ClusterIPs {
		add(a, sp.Port, Frontend{Kind: ClusterIP, Internal: inside, External: inside})
	}
	published := Frontend{Internal: Cluster, External: outside}
	if sp.NodePort != 0 && (obj.Type == service.NodePort || obj.Type == service.LoadBalancer) {
		published.Kind = NodePort
		add(unspecified(family), sp.NodePort, published)
	}
	if obj.Type == service.LoadBalancer {
		published.Kind, published.GuardSources = LoadBalancer, guarded
		for _, a := range obj.LoadBalancerIPs {
			add(a, sp.Port, published)
		}
	}
	published.Kind, published.GuardSources = ExternalIP, false
	for _, a := range obj.ExternalIPs {
		add(a, sp.Port, published)
	}
	return list
}

func policy(local bool) Policy {
	if local {
		return Local
	}
	return Cluster
}

func unspecified(family service.Family) netip.Addr {
	if family == service.IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// sourcesOf returns the ranges that guard the load balancer addresses of one
// family, canonical and sorted; nil lets everybody in. Ranges of the other
// family alone leave this one open.
func sourcesOf(obj *service.Service, family service.Family) []netip.Prefix {
	if obj.Type != service.LoadBalancer || len(obj.SourceRanges) == 0 {
		return nil
	}
	var ranges []netip.Prefix
	for _, r := range obj.SourceRanges {
		if !r.IsValid() || service.FamilyOf(r.Addr()) != family {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		ranges = append(ranges, r.Masked())
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	return slices.Compact(ranges)
}

// proxied tells whether a Service has service ports at all: it has an address
// of its own and is not merely a name for something else.
func proxied(obj *service.Service) bool {
	return obj != nil && !obj.Headless && obj.Type != service.ExternalName
}

// hasFamily tells whether a Service has that family: the families of its
// cluster IPs. What it names of another family is not served.
func hasFamily(obj *service.Service, family service.Family) bool {
	for _, a := range obj.ClusterIPs {
		if service.FamilyOf(a) == family {
			return true
		}
	}
	return false
}
