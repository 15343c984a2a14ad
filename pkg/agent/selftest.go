// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// trials are what self-tests try programs on: of each family one load balancer
// or external address, and one UDP frontend.
type trials struct {
	changes uint64 // that were known of when chosen
	chosen  loader.SelfTest
	known   bool
}

// choose returns what the tables should have. Compiled ports are looked through
// after changes only. The caller holds the lock.
func (t *trials) choose(a *Agent) loader.SelfTest {
	if len(a.reconciler.Failed()) > 0 {
		return loader.SelfTest{} // what is not written yet cannot be tested
	}
	if !t.known || t.changes != a.changes {
		t.known, t.changes = true, a.changes
		t.chosen = selfTest(a.compiler, a.facts.Addrs)
	}
	return t.chosen
}

func selfTest(c *compile.Compiler, local []netip.Addr) (test loader.SelfTest) {
	own := map[netip.Addr]bool{}
	for _, addr := range local {
		own[addr] = true
	}
	published, datagram := map[service.Family]bool{}, map[service.Family]bool{}
	for p := range c.Ports() {
		family := p.ID.Family
		for i := range p.Frontends {
			f := &p.Frontends[i]
			addr := f.Addr.Addr()
			switch {
			case (f.Kind == compile.LoadBalancer || f.Kind == compile.ExternalIP) && !own[addr] && !published[family]:
				published[family] = true
				test.Published = append(test.Published, addr)
			case f.Kind == compile.ClusterIP && !datagram[family]:
				if endpoint, ok := trialEndpoint(p, f); ok {
					datagram[family] = true
					test.Datagram = append(test.Datagram, loader.Datagram{Frontend: f.Addr, Endpoint: endpoint})
				}
			}
		}
		if len(published) == 2 && len(datagram) == 2 {
			break
		}
	}
	return test
}

// trialEndpoint is an endpoint that a connect to the frontend may lead to. With
// affinity a connect would leave a trace, and TCP would be heard.
func trialEndpoint(p *compile.Port, f *compile.Frontend) (netip.AddrPort, bool) {
	set := p.Cluster
	if f.Internal == compile.Local {
		set = p.Local
	}
	if p.ID.Protocol != service.UDP || p.Affinity != 0 || f.GuardSources || len(set) == 0 {
		return netip.AddrPort{}, false
	}
	return p.Backend(set[0]).Addr, true
}
