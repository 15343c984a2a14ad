// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	"portolan.dev/portolan/pkg/service"
)

// facts is all that the choice of endpoints needs to know of one endpoint, in
// one byte, so that a set is chosen by linear passes over bytes.
//
// The bits are ordered by what counts when several slices carry the same
// address: the highest byte wins, whole. So a running endpoint beats a
// terminating one (the pod network reused the address), for readiness as for
// locality, and the order of the slices is of no consequence.
type facts uint8

const (
	running   facts = 1 << 7 // not terminating
	ready     facts = 1 << 6 // the whole truth about use; serving is not asked beside it
	serving   facts = 1 << 5
	onNode    facts = 1 << 4
	nodeHint  facts = 1 << 3 // has hints for nodes
	nodeMatch facts = 1 << 2 // one of them names this node
	zoneHint  facts = 1 << 1
	zoneMatch facts = 1 << 0

	// known marks an endpoint that is not ready: hints are judged over ready
	// endpoints only, so their bits are free then. It makes every endpoint's
	// byte differ from 0, which means that no slice has the endpoint.
	known = zoneMatch
)

// factsOf reduces an endpoint of a slice of family. It is 0, as if the endpoint
// were not there, when the address is not of that family.
func (c *Compiler) factsOf(e *service.Endpoint, family service.Family) facts {
	if !e.Addr.IsValid() || service.FamilyOf(e.Addr) != family {
		return 0
	}
	var f facts
	if !e.Terminating {
		f |= running
	}
	if e.Serving {
		f |= serving
	}
	if e.NodeName == c.node.Name && e.NodeName != "" {
		f |= onNode
	}
	if !e.Ready {
		return f | known
	}
	f |= ready
	if len(e.NodeHints) > 0 {
		f |= nodeHint
		if c.node.Name != "" && slices.Contains(e.NodeHints, c.node.Name) {
			f |= nodeMatch
		}
	}
	if len(e.ZoneHints) > 0 {
		f |= zoneHint
		if c.node.Zone != "" && slices.Contains(e.ZoneHints, c.node.Zone) {
			f |= zoneMatch
		}
	}
	return f
}

// nodeless tells whether nobody says on which node the endpoint is, as of
// slices made by hand.
func nodeless(e service.Endpoint) bool { return e.NodeName == "" }

// lastResort tells whether the endpoint is used when there is no ready one.
func (f facts) lastResort() bool { return f&(ready|serving|running) == serving }

// live tells whether the endpoint has a backend.
func (f facts) live() bool { return f&(ready|serving) != 0 }

// mode is how the sets of a service port are chosen, judged over all of its
// endpoints. It indexes Compiler.verdicts.
type mode uint8

const (
	clusterFallback mode = 1 << 0 // no endpoint is ready: Cluster takes the last resort
	localFallback   mode = 1 << 1 // none on this node is ready: Local takes the last resort
	preferNode      mode = 1 << 2 // node hints are obeyed
	preferZone      mode = 2 << 2 // zone hints are obeyed
	modes                = 3 << 2

	preference = preferNode | preferZone
)

// modeOf judges the endpoints of a service port. The two sets fall back
// independently. Hints count only if every ready endpoint has one and some
// ready endpoint is meant for this node (or zone): node hints first, then zone
// hints, else none.
func modeOf(all []facts) mode {
	some, every := facts(0), ^facts(0)
	for _, f := range all {
		// The ready bit spread over the byte: no branch that endpoints in
		// random states would have mispredicted.
		mask := facts(int8(f<<1) >> 7)
		some |= f & mask
		every &= f | ^mask
	}
	var m mode
	if some&ready == 0 {
		m |= clusterFallback
	}
	if some&onNode == 0 {
		m |= localFallback
	}
	switch {
	case every&nodeHint != 0 && some&nodeMatch != 0:
		m |= preferNode
	case every&zoneHint != 0 && some&zoneMatch != 0:
		m |= preferZone
	}
	return m
}

// verdict is what becomes of one endpoint in one mode: the byte that a Backend
// is made from.
type verdict uint8

const (
	present   verdict = 1 << iota // some slice has it: the position is taken
	active                        // state Active
	draining                      // state Draining
	here                          // on this node, and has a state
	inCluster                     // in the set Cluster
	inLocal                       // in the set Local
)

// judge is the choice of endpoints: the only place where it is written down.
func judge(m mode, f facts) verdict {
	if f == 0 {
		return 0
	}
	v := present
	switch {
	case f&ready != 0:
		v |= active
	case f&serving != 0:
		v |= draining
	default:
		return v
	}
	if f&onNode != 0 {
		v |= here
	}
	if m&clusterFallback != 0 {
		if f.lastResort() {
			v |= inCluster
		}
	} else if f&ready != 0 && m.prefers(f) {
		v |= inCluster
	}
	if f&onNode != 0 && (m&localFallback == 0 && f&ready != 0 || m&localFallback != 0 && f.lastResort()) {
		v |= inLocal
	}
	return v
}

// prefers tells whether a ready endpoint passes the hints that m obeys.
func (m mode) prefers(f facts) bool {
	switch m & preference {
	case preferNode:
		return f&nodeMatch != 0
	case preferZone:
		return f&zoneMatch != 0
	}
	return true
}

// verdictTables spells judge out for every mode and byte: a set is then chosen
// with one look-up an endpoint.
func verdictTables() (t [modes][256]verdict) {
	for m := range t {
		for f := range t[m] {
			t[m][f] = judge(mode(m), facts(f))
		}
	}
	return t
}
