// SPDX-License-Identifier: Apache-2.0

package model

import "net/netip"

// The protocols that have ports, and ICMP.
const (
	TCP    = 6
	UDP    = 17
	SCTP   = 132
	ICMP   = 1
	ICMPv6 = 58
)

// State is what an endpoint may still be used for.
type State int

// An endpoint only ever moves down this list.
const (
	Active   State = iota
	Draining       // finishes what it has; new flows only if nobody else is left
	Dead
)

// Endpoint is where a service port is served.
type Endpoint struct {
	Addr     netip.AddrPort
	Here     bool // on this node
	Nodeless bool // its slice does not say where it is
	State    State
}

// ServicePort is one port of one Service in one family.
type ServicePort struct {
	Name      string
	Endpoints []*Endpoint
	Local     bool // externalTrafficPolicy
	Affinity  bool
	Sources   []netip.Prefix // guard the load balancer address; nil: open
	Direct    bool           // endpoints elsewhere answer clients outside themselves
	Maglev    bool
	Version   int // changes with the endpoints
}

// offers lists the endpoints for a new flow: those that are ready, else those
// that still serve; of this node only where the policy says so.
func (s *ServicePort) offers(localOnly bool) []*Endpoint {
	for _, state := range []State{Active, Draining} {
		var found []*Endpoint
		for _, e := range s.Endpoints {
			if e.State == state && (e.Here || !localOnly) {
				found = append(found, e)
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// Kind says which address of a Service a frontend has.
type Kind int

// The kinds of address.
const (
	ClusterIP Kind = iota
	NodePort
	LoadBalancer
	ExternalIP
)

// Service is an address and port that clients use. A NodePort has the
// unspecified address.
type Service struct {
	Addr  netip.AddrPort
	Proto uint8
	Kind  Kind
	Port  *ServicePort
}

type frontend struct {
	addr  netip.AddrPort
	proto uint8
}

// Device is a link of this node.
type Device struct {
	Index     uint32
	MAC       [6]byte
	XDPTarget bool // takes frames from XDP programs of other devices
	Inward    bool // leads to what is on this node
}

// Route leads to a network. Of those that fit the longest counts.
type Route struct {
	To          netip.Prefix
	Device      *Device    // nil: unreachable
	Gateway     netip.Addr // the zero address: the network is on the link
	GatewayMAC  [6]byte
	Known       netip.Addr // the last neighbour on the link whose MAC is known
	Unresolved  bool       // the neighbour is not known yet
	MTU         int
	Masquerade  netip.Addr // this node's address there
	OnlyAddress bool       // the node's own address: nothing is sent there
}

// World is what a node knows.
type World struct {
	Devices       []*Device
	Routes        []Route
	NodePortAddrs []netip.Addr
	Inside        []netip.Prefix // the pods'
	FirstPort     uint16         // of those to masquerade with
	LastPort      uint16
	MasqueradeAll bool // endpoints see this node as the source of everything

	services  map[frontend]*Service
	addresses map[netip.Addr]Kind
}

// Add makes the node know a Service.
func (w *World) Add(s *Service) {
	if w.services == nil {
		w.services, w.addresses = map[frontend]*Service{}, map[netip.Addr]Kind{}
	}
	w.services[frontend{s.Addr, s.Proto}] = s
	if s.Kind != NodePort && !w.servesNodePorts(s.Addr.Addr()) {
		w.addresses[s.Addr.Addr()] = s.Kind
	}
}

// find returns what a client addresses.
func (w *World) find(dst netip.AddrPort, proto uint8) *Service {
	if s := w.services[frontend{dst, proto}]; s != nil {
		return s
	}
	if w.servesNodePorts(dst.Addr()) {
		return w.services[frontend{anyAddress(dst), proto}]
	}
	return nil
}

// endsTunnel tells whether an address is that of an endpoint here whose Service
// is answered directly.
func (w *World) endsTunnel(a netip.Addr) bool {
	for _, s := range w.services {
		if s.Port.Direct && s.Port.endAt(a) != nil {
			return true
		}
	}
	return false
}

// endAt is the endpoint here that has an address and serves, if any.
func (s *ServicePort) endAt(a netip.Addr) *Endpoint {
	for _, e := range s.Endpoints {
		if e.Here && e.State != Dead && e.Addr.Addr() == a {
			return e
		}
	}
	return nil
}

func anyAddress(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}

func (w *World) servesNodePorts(a netip.Addr) bool {
	for _, n := range w.NodePortAddrs {
		if n == a {
			return true
		}
	}
	return false
}

// ours tells whether an address is a Service's or serves NodePorts.
func (w *World) ours(a netip.Addr) bool {
	_, service := w.addresses[a]
	return service || w.servesNodePorts(a)
}

// published tells whether an address is known outside and nobody else's.
func (w *World) published(a netip.Addr) bool {
	kind, found := w.addresses[a]
	return found && kind != ClusterIP
}

func (w *World) inside(a netip.Addr) bool {
	for _, p := range w.Inside {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// route returns the way to an address, nil when there is none.
func (w *World) route(to netip.Addr) *Route {
	var best *Route
	for i := range w.Routes {
		r := &w.Routes[i]
		if r.To.Contains(to) && (best == nil || r.To.Bits() > best.To.Bits()) {
			best = r
		}
	}
	if best == nil || best.Device == nil || best.OnlyAddress {
		return nil
	}
	if !best.Gateway.IsValid() && best.isNoHost(to) {
		return nil
	}
	if !best.Gateway.IsValid() && (best.Known.Less(to) || to == best.To.Addr()) {
		unresolved := *best
		unresolved.Unresolved = true
		return &unresolved
	}
	return best
}

// isNoHost: IPv4's last address of a network is everybody's, IPv6's first every
// router's.
func (r *Route) isNoHost(a netip.Addr) bool {
	if a.Is6() {
		return a == r.To.Addr()
	}
	return !r.To.Contains(a.Next())
}

func (w *World) masqueradePort(p uint16) bool { return p >= w.FirstPort && p <= w.LastPort }
