// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// trials are what self-tests try programs on: of each family one load balancer
// or external address, and one UDP frontend.
type trials struct {
	changes uint64       // that were known of when chosen
	local   []netip.Addr // the node's own addresses then
	chosen  loader.SelfTest
}

// choose returns what the tables should have. Compiled ports are looked through
// after changes only. An address that the node itself gets, as the holder of a
// virtual one does, is not published any more. The caller holds the lock.
func (t *trials) choose(a *Agent) loader.SelfTest {
	if len(a.reconciler.Failed()) > 0 {
		return loader.SelfTest{} // what is not written yet cannot be tested
	}
	if t.changes != a.changes || !slices.Equal(t.local, a.facts.Addrs) {
		t.changes, t.local = a.changes, a.facts.Addrs
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
				if leavesNoTrace(p, f) {
					datagram[family] = true
					test.Datagram = append(test.Datagram, f.Addr)
				}
			}
		}
		if len(published) == 2 && len(datagram) == 2 {
			break
		}
	}
	return test
}

// leavesNoTrace tells of which frontends a connect leads to an endpoint and
// changes nothing: affinity would be noted, and TCP be heard.
func leavesNoTrace(p *compile.Port, f *compile.Frontend) bool {
	set := p.Cluster
	if f.Internal == compile.Local {
		set = p.Local
	}
	return p.ID.Protocol == service.UDP && p.Affinity == 0 && !f.GuardSources && len(set) > 0
}
