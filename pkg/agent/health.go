// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"time"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

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
	servers := health.NewServers(health.Config{Logger: a.log, Healthy: func() bool {
		_, healthy := a.alive()
		return healthy
	}})
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
