// SPDX-License-Identifier: Apache-2.0

// Package compile turns Services, endpoint slices and node facts into what
// the tables hold: frontends, backends, and the sets that a frontend picks
// from. Every policy of Kubernetes is decided here and nowhere else.
//
// It is pure: no I/O, no clock, no goroutine. It imports pkg/service and the
// standard library only. The same objects give the same result, whatever the
// order and the number of steps in which they came (up to the positions of
// backends, which are history).
//
// The compiler works by service port: one port of one Service in one IP
// family. A change of an object touches only its own service ports (and those
// it contests a frontend with), so the work is proportional to the change and
// independent of the number of Services.
package compile

import (
	"net/netip"
	"time"

	"portolan.dev/portolan/pkg/service"
)

// PortID names a service port: the unit of compilation, of session affinity
// and of publication.
type PortID struct {
	Service  service.Name
	Port     string // the port's name, may be empty
	Protocol service.Protocol
	Family   service.Family
}

// Kind says which address of a Service a frontend is.
type Kind uint8

// The kinds of frontend.
const (
	ClusterIP Kind = iota
	NodePort
	LoadBalancer
	ExternalIP
	// Elsewhere marks an address of a Service that another proxy serves: no
	// frontend, but to be let pass although it is in a service CIDR. Such
	// frontends have port 0 and protocol 0, and stand alone in a Port whose ID
	// has an empty Port and protocol 0.
	Elsewhere
)

func (k Kind) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "Elsewhere"}[k]
}

// FrontendKey is what a client addresses. A NodePort has the unspecified
// address of its family: which addresses serve NodePorts is kept apart, so
// that their number does not multiply frontends.
type FrontendKey struct {
	Addr     netip.AddrPort
	Protocol service.Protocol
}

// Policy says which endpoints a frontend offers in one scope.
type Policy uint8

// The policies. What an empty set means is not in the policy: see Port.Refuse.
const (
	// Cluster is the set Port.Cluster.
	Cluster Policy = iota
	// Local is the set Port.Local: endpoints of this node only.
	Local
)

// Frontend is one address and port that a service port is reached by.
type Frontend struct {
	FrontendKey
	Kind Kind
	// Internal is for traffic of this node's sockets and pods, External for
	// what arrives from outside the cluster.
	Internal Policy
	External Policy
	// GuardSources: only clients within Port.SourceRanges may use it.
	GuardSources bool
}

// State is what a backend may still be used for.
type State uint8

// The states of a backend. An endpoint that stopped serving, or is gone, has
// no backend at all: flows to it are to be cut.
const (
	// Active backends are ready: they may be picked, and pinned by affinity.
	Active State = iota + 1
	// Draining backends are terminating but still serve, or serve without
	// being ready: flows to them are kept. They are picked only as a last
	// resort, when the sets contain them.
	Draining
)

// Backend is an endpoint of a service port. The zero Backend is a hole.
type Backend struct {
	Addr  netip.AddrPort
	State State
	// InCluster and InLocal tell whether the sets contain it.
	InCluster bool
	InLocal   bool
	// OnNode: the endpoint is on this node.
	OnNode bool
	// Nodeless: no slice says on which node it is, so it may be on none.
	Nodeless bool
}

// Port is a compiled service port. It is owned by the compiler and valid
// until the next Apply: readers copy what they keep.
type Port struct {
	ID PortID
	// Type is the Service's, for people: nothing is decided by it.
	Type service.Type
	// Frontends, like SourceRanges, is replaced and never changed in place: it
	// may be kept.
	Frontends []Frontend
	// Cluster and Local are the positions that each policy offers, endpoints
	// of this node first; where Local is a prefix of Cluster, one range of
	// slots serves both.
	Cluster []int32
	Local   []int32
	// Refuse: no endpoint anywhere could serve, whatever the policy. An empty
	// set while Refuse is false means drop: endpoints live elsewhere.
	Refuse bool
	// MaglevSize is the number of slots of a Maglev table for each set, 0 for
	// one slot an endpoint.
	MaglevSize uint32
	// Direct: endpoints on other nodes answer clients outside directly (DSR).
	Direct bool
	// Affinity is the ClientIP session affinity timeout; 0 is none.
	Affinity time.Duration
	// SourceRanges are those of the port's family, canonical and sorted; nil
	// when everybody is let in.
	SourceRanges []netip.Prefix

	// By position: who it is, and what became of it.
	addrs    []address
	verdicts []verdict
	weights  []uint32 // nil: all 1
	nodeless []bool   // nil: none is
}

// Positions is the number of positions, holes included. A position is constant
// for as long as its endpoint stays; holes are reused.
func (p *Port) Positions() int { return len(p.verdicts) }

// Backend returns the backend at a position.
func (p *Port) Backend(pos int32) Backend {
	v := p.verdicts[pos]
	if v&(active|draining) == 0 {
		return Backend{}
	}
	b := Backend{Addr: p.addrs[pos].addrPort(), State: Active, InCluster: v&inCluster != 0, InLocal: v&inLocal != 0, OnNode: v&here != 0}
	b.Nodeless = p.nodeless != nil && p.nodeless[pos]
	if v&draining != 0 {
		b.State = Draining
	}
	return b
}

// Weight is the share of the backend at a position against the others'.
func (p *Port) Weight(pos int32) uint32 {
	if p.weights == nil {
		return 1
	}
	return max(1, p.weights[pos])
}

// Slots is the number of slots that a set of so many backends takes.
func (p *Port) Slots(backends int) uint32 {
	if backends == 0 || p.MaglevSize == 0 {
		return uint32(backends)
	}
	return p.MaglevSize
}

// Change tells that a service port is new, different, or gone.
type Change struct {
	ID PortID
	// Port is nil when the service port is gone.
	Port *Port
	// Touched are the positions whose Backend differs from the last Change of
	// this port, holes included; nil together with All.
	Touched []int32
	// All: everything may differ (new port, new frontends, new facts).
	All bool
}
