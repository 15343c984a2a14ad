// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"time"

	"portolan.dev/portolan/pkg/compile"
)

// unfinished is what could not be written, each by what has to be tried again:
// that another thing could be written mends nothing.
type unfinished struct{ node, ports error }

// writeNode has the tables say what this node is. The caller holds the lock.
func (a *Agent) writeNode() error {
	a.unfinished.node = a.reconciler.ApplyNode(a.nodeTables())
	return a.unfinished.node
}

// writePorts has the tables say what the changes say. What failed before but for
// service ports (attaching, growing) is tried anew by it; what failed of those
// stays unfinished until none is left. The caller holds the lock.
func (a *Agent) writePorts(changes []compile.Change) error {
	err := a.reconciler.Apply(changes)
	if err != nil || len(a.reconciler.Failed()) == 0 {
		a.unfinished.ports = err
	}
	return err
}

// unwritten is what the tables are known to lack. The caller holds the lock.
func (a *Agent) unwritten() []compile.Change {
	if !a.synced {
		return a.everything(nil)
	}
	var changes []compile.Change
	for _, id := range a.reconciler.Failed() {
		changes = append(changes, compile.Change{ID: id, Port: a.compiler.Port(id), All: true})
	}
	return changes
}

// everything is every service port there is, and which of some changes took one
// away: what the tables may lack that no program of this agent has used yet.
// The caller holds the lock.
func (a *Agent) everything(changes []compile.Change) []compile.Change {
	all := slices.DeleteFunc(changes, func(c compile.Change) bool { return c.Port != nil })
	for p := range a.compiler.Ports() {
		all = append(all, compile.Change{ID: p.ID, Port: p, All: true})
	}
	return all
}

// takeOver is what follows once programs of this agent use the tables, whatever
// became of single service ports. The caller holds the lock.
func (a *Agent) takeOver(ports int, begin time.Time) {
	a.synced = true
	a.log.Info("tables are complete", "servicePorts", ports, "took", time.Since(begin))
	a.applyDevices()
	notify(a.sweep)
	notify(a.checksChanged)
}

// retry writes anew what failed before.
func (a *Agent) retry() {
	begin := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.seen {
		return
	}
	changes := a.unwritten()
	a.writeNode()
	a.writePorts(changes)
	if !a.synced && a.reconciler.Attached() {
		a.takeOver(len(changes), begin)
	}
}
