// SPDX-License-Identifier: Apache-2.0

// Package service is the model that the rest of Portolan works on: Services,
// endpoint slices and facts about this node, reduced to what decides where a
// connection goes or what an operator is shown.
//
// It is pure data and imports the standard library only. Kubernetes types end
// where a source (pkg/source) turns an API object into a value of this
// package. Values are immutable once handed over: a source that learns
// something new hands over a new value, so readers need no locks.
package service

import (
	"fmt"
	"net/netip"
	"time"
)

// Protocol is a transport protocol, by its IANA number.
type Protocol uint8

// The protocols that a Service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// ParseProtocol reads a protocol as Kubernetes writes it; empty means TCP.
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "TCP", "":
		return TCP, nil
	case "UDP":
		return UDP, nil
	case "SCTP":
		return SCTP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q: use TCP, UDP or SCTP", s)
}

// Family is an IP family: each has its own frontends, backends and service
// ports, as each has its own proxier in kube-proxy.
type Family uint8

// The two IP families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// FamilyOf tells the family of an address that is not IPv4-mapped.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Name names a namespaced object.
type Name struct {
	Namespace string
	Name      string
}

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Type is the type of a Service.
type Type uint8

// The types of Service. Headless is not a type: see Service.Headless.
const (
	ClusterIP Type = iota
	NodePort
	LoadBalancer
	ExternalName
)

func (t Type) String() string {
	switch t {
	case ClusterIP:
		return "ClusterIP"
	case NodePort:
		return "NodePort"
	case LoadBalancer:
		return "LoadBalancer"
	case ExternalName:
		return "ExternalName"
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// Service is a Kubernetes Service with everything that is invalid for its
// families already left out and reported (see Problem).
type Service struct {
	Name
	// Created decides who keeps a frontend that two Services claim: the older.
	Created time.Time
	Type    Type
	// Headless Services (clusterIP: None) and ExternalName Services have no
	// table entry; they are kept to be shown.
	Headless     bool
	ExternalName string

	// ProxyName is set when another proxy serves this Service (by the label
	// service.kubernetes.io/service-proxy-name): its addresses are let pass.
	ProxyName string

	ClusterIPs  []netip.Addr
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the ingress addresses that this node short-circuits
	// (ipMode VIP or unset); ProxyIPs those it must leave alone (ipMode Proxy).
	LoadBalancerIPs []netip.Addr
	ProxyIPs        []netip.Addr
	// LoadBalancerHostnames are ingress points known by name only; shown.
	LoadBalancerHostnames []string
	// SourceRanges guard the load balancer addresses, per family: a family
	// without a range, or with a range that covers everything, is open.
	SourceRanges []netip.Prefix

	Ports []Port

	// Affinity is the time that a client stays with its endpoint; 0 is none.
	Affinity time.Duration
	// InternalLocal and ExternalLocal are the traffic policies Local.
	InternalLocal bool
	ExternalLocal bool
	// Algorithm and Forwarding are for traffic from outside.
	Algorithm  Algorithm
	Forwarding Forwarding
	// HealthCheckNodePort is 0 for none.
	HealthCheckNodePort uint16

	// Selector is shown only, as kubectl prints it: "app=web,tier=front".
	Selector string
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0 for none
	// TargetPort is shown only: the slices carry the number that counts.
	TargetPort string
}

// EndpointSlice is one EndpointSlice of a Service.
type EndpointSlice struct {
	Name
	// Service is the name of the Service, in the slice's own namespace.
	Service string
	Family  Family
	// Headless slices are DNS's business: they are shown with a headless
	// Service and never used for one that has an address.
	Headless bool
	// Weight is the share of each of its endpoints against those of other
	// slices, where the algorithm knows weights; 0 counts as 1.
	Weight uint32
	// Ports name a number each; a port without name or number is left out.
	Ports     []SlicePort
	Endpoints []Endpoint
	// ChangedAt is when the change of pods or of the Service that led to this
	// state of the slice happened; zero: unknown. It is for measuring only.
	ChangedAt time.Time
}

// ServiceName names the Service that the slice belongs to.
func (s *EndpointSlice) ServiceName() Name { return Name{s.Namespace, s.Service} }

// SlicePort says on which number the slice's endpoints serve a Service port.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one endpoint of a slice. Its conditions are those of the API
// with defaults applied: an absent ready or serving is true, an absent
// terminating false.
type Endpoint struct {
	Addr        netip.Addr
	Ready       bool
	Serving     bool
	Terminating bool
	NodeName    string
	Zone        string
	// ZoneHints and NodeHints are the slice's hints; nil is no hint.
	ZoneHints []string
	NodeHints []string
	// Target is shown only: the pod behind the endpoint, or empty.
	Target string
}

// Node is what this node is, as far as Services care.
type Node struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone, or empty.
	Zone string
	// Addresses are the Node object's InternalIP addresses, then its
	// ExternalIP ones; the first of each family is the primary address.
	Addresses []netip.Addr
	// Leaving says why load balancers should send no new connections to the
	// node; empty: they should.
	Leaving string
}

// Problem is something in the input that is not served as written. Nothing
// vanishes silently: each becomes a log line, a metric and a line of
// `portolan status`, while everything else goes on.
type Problem struct {
	// Object names the culprit: "Service default/web", "file a.yaml",
	// "EndpointSlice default/web-x1".
	Object string `json:"object"`
	// Reason is a stable kebab-case word, the label of the metric.
	Reason string `json:"reason"`
	// Message says what is wrong and what mends it.
	Message string `json:"message"`
}

func (p Problem) String() string { return p.Object + ": " + p.Message }

// Reasons of problems. Sources, compiler and reconciler use the same words.
const (
	ReasonUnreadable      = "unreadable"        // a file or an object does not parse
	ReasonUnknownProtocol = "unknown-protocol"  // protocol other than TCP, UDP, SCTP
	ReasonInvalidPort     = "invalid-port"      // port number 0 or above 65535
	ReasonInvalidAddress  = "invalid-address"   // not an IP address
	ReasonLeadingZeros    = "leading-zeros"     // taken as decimal, but worth a word
	ReasonWrongFamily     = "wrong-family"      // address of a family the object does not have
	ReasonNotAllowed      = "not-allowed"       // forbidden by the agent's flags
	ReasonInvalidRange    = "invalid-range"     // not a CIDR
	ReasonInvalidField    = "invalid-field"     // any other field value that cannot be
	ReasonConflict        = "frontend-conflict" // an older Service has the frontend
	ReasonTooMany         = "too-many-endpoints"
	ReasonTableFull       = "table-full"
	ReasonNotWritten      = "not-written"   // the agent could not do it and tries again
	ReasonDevice          = "device"        // a device is not served as asked
	ReasonForwarding      = "forwarding"    // the kernel is told not to forward
	ReasonHealthPort      = "health-port"   // a health check cannot be answered
	ReasonNodePortHeld    = "nodeport-held" // a socket of this node has a NodePort
	ReasonDataplane       = "dataplane"     // the kernel does not do what it was told
	ReasonHost            = "host"          // a setting of this node could not be made
	ReasonNoNode          = "no-node"       // the cluster has no Node of this node's name
	ReasonKept            = "kept"          // an update is not believed, what was before stays
)
