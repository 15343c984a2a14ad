// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/service"
)

// nodePorts are the NodePorts that are served, for a look at which of them a
// socket of this node had before: the hook that refuses such binds cannot undo
// one. It has a lock of its own, so that the look holds up nobody.
type nodePorts struct {
	changed chan struct{}
	mu      sync.Mutex
	byID    map[compile.PortID]uint16
}

func newNodePorts() *nodePorts {
	return &nodePorts{changed: make(chan struct{}, 1), byID: map[compile.PortID]uint16{}}
}

// note follows changes that were written, and has a look taken when a NodePort
// is new. It costs a map access a change.
func (n *nodePorts) note(changes []compile.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range changes {
		id := changes[i].ID
		port := nodePortOf(changes[i].Port)
		switch had := n.byID[id]; {
		case port == had:
		case port == 0:
			delete(n.byID, id)
		default:
			n.byID[id] = port
			notify(n.changed)
		}
	}
}

func nodePortOf(p *compile.Port) uint16 {
	if p == nil {
		return 0
	}
	for i := range p.Frontends {
		if p.Frontends[i].Kind == compile.NodePort {
			return p.Frontends[i].Addr.Port()
		}
	}
	return 0
}

// protocols are those of the NodePorts.
func (n *nodePorts) protocols() []service.Protocol {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []service.Protocol
	for id := range n.byID {
		if !slices.Contains(out, id.Protocol) {
			out = append(out, id.Protocol)
		}
	}
	return out
}

// holding pairs a service port with a socket that has its NodePort.
type holding struct {
	id   compile.PortID
	port uint16
	node.Listener
}

// held finds the NodePorts that listeners have, on addresses that serve them.
func (n *nodePorts) held(listeners map[service.Protocol][]node.Listener, serving map[netip.Addr]bool) []holding {
	byPort := map[service.Protocol]map[uint16][]node.Listener{}
	for protocol, list := range listeners {
		byPort[protocol] = map[uint16][]node.Listener{}
		for _, l := range list {
			port := l.Addr.Port()
			byPort[protocol][port] = append(byPort[protocol][port], l)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []holding
	for id, port := range n.byID {
		for _, l := range byPort[id.Protocol][port] {
			if takesAny(l, port, id.Family, serving) {
				out = append(out, holding{id, port, l})
			}
		}
	}
	return out
}

func takesAny(l node.Listener, port uint16, family service.Family, serving map[netip.Addr]bool) bool {
	for addr := range serving {
		if addr.Is4() == (family == service.IPv4) && l.Takes(netip.AddrPortFrom(addr, port)) {
			return true
		}
	}
	return false
}

// How often is looked: of a burst of new Services once a second, and while a
// port is held, whether it still is.
const (
	holderPause = time.Second
	holderAgain = 5 * time.Second
)

// watchHolders names the sockets that hold a NodePort until ctx ends.
func (a *Agent) watchHolders(ctx context.Context) error {
	again := time.NewTicker(holderAgain)
	defer again.Stop()
	found, failing := false, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.nodePorts.changed:
		case <-again.C:
			if !found {
				continue
			}
		}
		problems, err := a.holders()
		if err != nil && !failing {
			a.log.Info("cannot look which sockets of this node hold NodePorts", "error", err)
		}
		failing = err != nil
		found = len(problems) > 0
		a.problems.set("held NodePorts", problems)
		select {
		case <-ctx.Done():
		case <-time.After(holderPause):
		}
	}
}

// holders looks once. Protocols that the kernel cannot list are an error, and
// the others are looked at all the same.
func (a *Agent) holders() ([]service.Problem, error) {
	listeners := map[service.Protocol][]node.Listener{}
	var errs []error
	for _, protocol := range a.nodePorts.protocols() {
		list, err := node.Listeners(ipProtocol(protocol))
		if err != nil {
			errs = append(errs, err)
		}
		listeners[protocol] = list
	}
	a.mu.Lock()
	serving := a.cfg.Options.NodePorts.NodePortAddrs(a.facts, a.node.Addresses)
	held := slices.DeleteFunc(a.nodePorts.held(listeners, serving), a.isItsEndpoint)
	a.mu.Unlock()
	return holderProblems(held), errors.Join(errs...)
}

func ipProtocol(p service.Protocol) uint8 {
	switch p {
	case service.UDP:
		return unix.IPPROTO_UDP
	case service.SCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// isItsEndpoint tells whether the socket is an endpoint of the very Service, as
// of a pod in the host's network: it is reached through the Service. The caller
// holds the lock.
func (a *Agent) isItsEndpoint(h holding) bool {
	p := a.compiler.Port(h.id)
	if p == nil {
		return true // gone meanwhile
	}
	for pos := range int32(p.Positions()) {
		b := p.Backend(pos)
		if b.State != 0 && b.Addr.Port() == h.port && h.Takes(b.Addr) && slices.Contains(a.facts.Addrs, b.Addr.Addr()) {
			return true
		}
	}
	return false
}

// holderProblems tells of each Service and socket once, whatever the families.
func holderProblems(held []holding) []service.Problem {
	var out []service.Problem
	for _, h := range held {
		flag := map[service.Protocol]string{service.UDP: "u", service.SCTP: "S"}[h.id.Protocol]
		if flag == "" {
			flag = "t"
		}
		p := service.Problem{Object: "Service " + h.id.Service.String(), Reason: service.ReasonNodePortHeld,
			Message: fmt.Sprintf("nodePort %d/%s is held by a socket of this node on %s: clients reach the Service and nobody that socket; "+
				"end its process (ss -ln%sp 'sport = :%d' names it) or give the Service another nodePort",
				h.port, h.id.Protocol, h.Addr, flag, h.port)}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(x, y service.Problem) int {
		return strings.Compare(x.Object+x.Message, y.Object+y.Message)
	})
	return out
}
