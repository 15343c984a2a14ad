// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// allAttached tells whether what an earlier agent left translates sockets.
func allAttached(root string) bool {
	return !slices.ContainsFunc(loader.Attachments(root), func(x loader.Attachment) bool { return !x.Attached })
}

// noteProgress tells whoever asks for the agent's health how the tables stand
// after a change, a retry, or a change of the node, and returns why they are not
// up to date. A few service ports that cannot be written are problems of theirs:
// if the node were called sick, all nodes would be, and one Service would take
// all others down.
func (a *Agent) noteProgress() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.synced:
	case a.unfinished.node != nil, a.unfinished.ports != nil && len(a.reconciler.Failed()) == 0:
		a.proxy.Begin(time.Now())
	default:
		a.proxy.Update(time.Now())
		a.recorder.UpToDate(time.Now())
	}
	return errors.Join(a.unfinished.node, a.unfinished.ports)
}

// testEvery is how often the dataplane is looked at.
const testEvery = 2 * time.Second

// testDataplane looks whether the kernel does what it was told until ctx ends:
// a health answer is about traffic, not about this process.
func (a *Agent) testDataplane(ctx context.Context) error {
	every := time.NewTicker(testEvery)
	defer every.Stop()
	var known trials
	var before []loader.Fault
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
		a.mu.Lock()
		var seen []loader.Fault
		if a.synced {
			seen = a.loader.Faults(known.choose(a))
			a.devices = a.loader.DeviceStatus()
		}
		a.mu.Unlock()
		found := lasting(before, seen)
		before = seen
		faults := make([]health.Fault, 0, len(found))
		var problems []service.Problem
		for _, f := range found {
			faults = append(faults, health.Fault{Family: service.Family(f.Family), Reason: f.Reason})
			problems = append(problems, service.Problem{Object: "dataplane", Reason: service.ReasonDataplane, Message: f.Reason})
		}
		a.proxy.SetFaults(faults)
		a.problems.set("dataplane", problems)
	}
}

// lasting are the faults that were seen twice in a row: a device that is just
// being taken away is none.
func lasting(before, now []loader.Fault) []loader.Fault {
	var out []loader.Fault
	for _, f := range now {
		if slices.Contains(before, f) {
			out = append(out, f)
		}
	}
	return out
}

// checkAgain is how often a health check port that could not be had is tried
// again: who holds it may end without anything else changing.
const checkAgain = 5 * time.Second

// noteChecks has the health checks of load balancers follow a batch that was
// compiled. The caller holds the lock.
func (a *Agent) noteChecks(u source.Update, changes []compile.Change) {
	if a.checks.Update(u.Services, changes, a.compiler.Port) || u.Node != nil {
		notify(a.checksChanged)
	}
}

// answerChecks answers load balancers, on the addresses that serve NodePorts,
// until ctx ends.
func (a *Agent) answerChecks(ctx context.Context) error {
	servers := health.NewServers(health.Config{Logger: a.log, Healthy: a.proxy.Healthy})
	defer servers.Close()
	again := time.NewTicker(checkAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.checksChanged:
		case <-again.C:
		}
		checks, problems, addrs := a.wantedChecks()
		a.problems.set("health checks", append(problems, servers.Sync(checks, addrs)...))
	}
}

// wantedChecks is what is to be answered, and where. Before everything has been
// seen once the counts would be wrong: nothing is.
func (a *Agent) wantedChecks() ([]health.Check, []service.Problem, []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.synced {
		return nil, nil, nil
	}
	checks, problems := a.checks.List()
	serving := a.cfg.Options.NodePorts.NodePortAddrs(a.facts, a.node.Addresses)
	return checks, problems, health.Addresses(serving, a.facts.Addrs)
}
