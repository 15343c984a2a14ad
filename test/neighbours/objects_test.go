// SPDX-License-Identifier: Apache-2.0

package neighbours_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// svc is a dual-stack Service with the port 80 of TCP and UDP, and everything
// that can be reached from outside. Its number makes its addresses:
// 10.96.0.N, fd00:10:96::N, 203.0.113.N, 2001:db8:1b::N and NodePort 30000+N.
type svc struct {
	name       string
	number     int
	forwarding string // the annotation; empty: as the agent's flag says
	pods       []*pod
	leaving    *pod // an endpoint that is terminating; nil: none
}

func (s svc) clusterIPs() map[string]netip.Addr {
	return map[string]netip.Addr{
		"IPv4": netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", s.number)),
		"IPv6": netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%d", s.number)),
	}
}

// clusterIPFrontends are "address:port" of both families.
func (s svc) clusterIPFrontends() []string {
	return []string{fmt.Sprintf("10.96.0.%d:80", s.number), fmt.Sprintf("[fd00:10:96::%d]:80", s.number)}
}

// outsideFrontends are the ways in from outside, of both families: NodePorts
// of these nodes and the load balancer's addresses.
func (s svc) outsideFrontends(nodes ...*node) []string {
	out := []string{fmt.Sprintf("203.0.113.%d:80", s.number), fmt.Sprintf("[2001:db8:1b::%d]:80", s.number)}
	for _, n := range nodes {
		for _, addr := range []netip.Addr{n.IPv4(), n.IPv6()} {
			out = append(out, netip.AddrPortFrom(addr, uint16(30000+s.number)).String())
		}
	}
	return out
}

// addr is the pod's address of a family.
func (p *pod) addr(family string) netip.Addr {
	if family == "IPv6" {
		return p.v6
	}
	return p.v4
}

// backends are the endpoints of a family as the agent lists them.
func (s svc) backends(family string) []string {
	out := []string{}
	for _, p := range s.pods {
		out = append(out, netip.AddrPortFrom(p.addr(family), 8080).String())
	}
	slices.Sort(out)
	return out
}

func (s svc) objects() string {
	var text strings.Builder
	annotations := ""
	if s.forwarding != "" {
		annotations = fmt.Sprintf(", annotations: {portolan.dev/forwarding-mode: %s}", s.forwarding)
	}
	n := s.number
	fmt.Fprintf(&text, `
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default%s}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.%d
  clusterIPs: [10.96.0.%d, "fd00:10:96::%d"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: tcp, port: 80, nodePort: %d, protocol: TCP, targetPort: 8080}
  - {name: udp, port: 80, nodePort: %d, protocol: UDP, targetPort: 8080}
status: {loadBalancer: {ingress: [{ip: 203.0.113.%d}, {ip: "2001:db8:1b::%d"}]}}
---
`, s.name, annotations, n, n, n, 30000+n, 30000+n, n, n)
	for _, family := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&text, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-%s, namespace: default, labels: {kubernetes.io/service-name: %s}}
addressType: %s
ports: [{name: tcp, port: 8080, protocol: TCP}, {name: udp, port: 8080, protocol: UDP}]
endpoints:
`, s.name, strings.ToLower(family), s.name, family)
		for _, p := range s.pods {
			fmt.Fprintf(&text, "- {addresses: [%q], conditions: {ready: true, serving: true}, nodeName: %s}\n", p.addr(family), p.node.Name())
		}
		if p := s.leaving; p != nil {
			fmt.Fprintf(&text, "- {addresses: [%q], conditions: {ready: false, serving: true, terminating: true}, nodeName: %s}\n", p.addr(family), p.node.Name())
		}
		text.WriteString("---\n")
	}
	return text.String()
}

func nodeObject(n *node) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: %s}
status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: %q}]}
---
`, n.Name(), n.IPv4(), n.IPv6())
}
