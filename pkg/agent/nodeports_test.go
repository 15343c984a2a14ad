// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"strings"
	"testing"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/service"
)

func withNodePort(protocol service.Protocol, family service.Family, port uint16) compile.Change {
	id := compile.PortID{Service: service.Name{Namespace: "shop", Name: "store"}, Port: "http", Protocol: protocol, Family: family}
	addr := netip.IPv4Unspecified()
	if family == service.IPv6 {
		addr = netip.IPv6Unspecified()
	}
	p := &compile.Port{ID: id}
	if port != 0 {
		p.Frontends = []compile.Frontend{{FrontendKey: compile.FrontendKey{Addr: netip.AddrPortFrom(addr, port), Protocol: protocol}, Kind: compile.NodePort}}
	}
	return compile.Change{ID: id, Port: p}
}

func TestOnlyANewNodePortIsLookedFor(t *testing.T) {
	t.Parallel()
	n := newNodePorts()
	looks := func() bool {
		select {
		case <-n.changed:
			return true
		default:
			return false
		}
	}
	for _, c := range []struct {
		what string
		port uint16
		look bool
	}{
		{"a Service without one", 0, false},
		{"a new one", 30080, true},
		{"the same with other endpoints", 30080, false},
		{"another", 30081, true},
		{"none any more", 0, false},
	} {
		n.note([]compile.Change{withNodePort(service.TCP, service.IPv4, c.port)})
		if got := looks(); got != c.look {
			t.Errorf("%s: a look is taken: %v", c.what, got)
		}
	}
	gone := withNodePort(service.TCP, service.IPv4, 30080)
	n.note([]compile.Change{gone})
	gone.Port = nil
	n.note([]compile.Change{gone})
	if list := n.protocols(); len(list) != 0 {
		t.Errorf("a Service that is gone leaves %v", list)
	}
}

func TestASocketHoldsANodePortOnAnAddressThatServesIt(t *testing.T) {
	t.Parallel()
	serving := map[netip.Addr]bool{
		netip.MustParseAddr("192.168.100.1"): false, netip.MustParseAddr("fd00:192:168:100::1"): false,
	}
	for _, c := range []struct {
		socket string
		both   bool
		held   string // the families, or none
	}{
		{"192.168.100.1:30080", false, "IPv4"},
		{"0.0.0.0:30080", false, "IPv4"},
		{"[::]:30080", true, "IPv4 IPv6"},
		{"[::]:30080", false, "IPv6"},
		{"[fd00:192:168:100::1]:30080", false, "IPv6"},
		{"127.0.0.1:30080", false, ""},     // serves no NodePorts here
		{"192.168.100.1:30081", false, ""}, // another port
	} {
		n := newNodePorts()
		n.note([]compile.Change{withNodePort(service.TCP, service.IPv4, 30080), withNodePort(service.TCP, service.IPv6, 30080)})
		l := node.Listener{Addr: netip.MustParseAddrPort(c.socket), Both: c.both}
		got := map[string]bool{}
		held := n.held(map[service.Protocol][]node.Listener{service.TCP: {l}}, serving)
		for _, h := range held {
			got[h.id.Family.String()] = true
		}
		for _, family := range []string{"IPv4", "IPv6"} {
			if got[family] != strings.Contains(c.held, family) {
				t.Errorf("a socket on %s (both %v) holds %v, want %q", c.socket, c.both, got, c.held)
			}
		}
		// One socket is one problem, whatever the families.
		if problems := holderProblems(held); (len(problems) == 1) != (c.held != "") {
			t.Errorf("a socket on %s: %v", c.socket, problems)
		}
		if held := n.held(map[service.Protocol][]node.Listener{service.UDP: {l}}, serving); len(held) != 0 {
			t.Errorf("a UDP socket on %s holds the port of TCP: %v", c.socket, held)
		}
	}
}

func TestAProblemOfAHeldNodePortSaysWhatMendsIt(t *testing.T) {
	t.Parallel()
	h := holding{id: withNodePort(service.UDP, service.IPv4, 30053).ID, port: 30053,
		Listener: node.Listener{Addr: netip.MustParseAddrPort("0.0.0.0:30053")}}
	want := service.Problem{Object: "Service shop/store", Reason: "nodeport-held",
		Message: "nodePort 30053/UDP is held by a socket of this node on 0.0.0.0:30053: clients reach the Service and nobody that socket; " +
			"end its process (ss -lnup 'sport = :30053' names it) or give the Service another nodePort"}
	if got := holderProblems([]holding{h}); len(got) != 1 || got[0] != want {
		t.Errorf("problems are %v, want %v", got, want)
	}
}
