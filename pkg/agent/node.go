// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
)

func equalPrefixes(a, b []netip.Prefix) bool { return slices.Equal(a, b) }

func readFacts() (node.Facts, []node.Link, error) {
	facts, err := node.Read()
	links, linksErr := node.ReadLinks()
	return facts, links, errors.Join(err, linksErr)
}

// awaitNode reads what there is to know of this node until it is known, ctx ends
// or something failed. Without it, whatever an earlier agent left of addresses
// and devices would be taken for unwanted.
func (a *Agent) awaitNode(ctx context.Context, failed <-chan error) (known bool, err error) {
	for !a.readNode() {
		select {
		case <-ctx.Done():
			return false, nil
		case err := <-failed:
			return false, err
		case <-time.After(retryAfter):
		}
	}
	return true, nil
}

// readNode takes stock of the node's addresses and devices, and tells whether it
// could. The kernel ends a list of them early that changes meanwhile.
func (a *Agent) readNode() bool {
	facts, links, err := a.read()
	if err != nil {
		a.log.Error("addresses of this node are not up to date", "error", err)
		a.problems.set("node", errorProblem(err))
		return false
	}
	a.problems.set("node", nil)
	targets := a.readXDPTargets(links)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.facts, a.links, a.xdpTargets = facts, links, targets
	a.problems.set("forwarding", a.forwardingProblems())
	return true
}

func (a *Agent) applyNode() {
	a.mu.Lock()
	defer a.mu.Unlock()
	notify(a.checksChanged)
	notify(a.nodePorts.changed)
	a.writeNode()
	if a.synced {
		a.applyDevices()
	}
}

// nodeTables is what the tables are to say about this node. The caller holds
// the lock.
func (a *Agent) nodeTables() reconcile.Node {
	opt := &a.cfg.Options
	n := reconcile.Node{
		Addresses:     a.facts.Addrs,
		NodePortAddrs: opt.NodePorts.NodePortAddrs(a.facts, a.node.Addresses),
		Source4:       a.facts.Source4,
		Source6:       a.facts.Source6,
		InsideCIDRs:   reconcile.Canonical(opt.InsideCIDRs),
		Masquerade:    reconcile.PortRange{First: opt.MasqueradeFirst, Last: opt.MasqueradeLast},
		Devices:       a.wireDevices(),
	}
	a.problems.set("cluster CIDRs", tooManyCIDRs("--cluster-cidr", n.InsideCIDRs, "traffic from the others counts as from outside"))
	// Of all Services of the cluster this agent serves a few: whose the other
	// addresses are it cannot know.
	if opt.ServiceProxyName != "" {
		return n
	}
	n.ServiceCIDRs = opt.CIDRs
	if len(n.ServiceCIDRs) == 0 {
		n.ServiceCIDRs = a.cidrs
	}
	n.ServiceCIDRs = reconcile.Canonical(n.ServiceCIDRs)
	a.problems.set("service CIDRs", tooManyCIDRs("service CIDRs", n.ServiceCIDRs, "addresses of the others that no Service has are not refused"))
	return n
}

func tooManyCIDRs(object string, cidrs []netip.Prefix, without string) []service.Problem {
	if len(cidrs) <= reconcile.MaxServiceCIDRs {
		return nil
	}
	return []service.Problem{{Object: object, Reason: service.ReasonTableFull,
		Message: fmt.Sprintf("there are more than %d; %s: join neighbouring CIDRs", reconcile.MaxServiceCIDRs, without)}}
}

// closeStale closes UDP sockets of stopped backends after changes that may have
// stopped some. Changes that come while it runs lead to one more run.
func (a *Agent) closeStale(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.sweep:
		}
		for _, path := range a.namespaces() {
			closed, err := a.loader.CloseStaleUDP(path)
			if closed.Total() > 0 {
				a.log.Info("closed UDP sockets of stopped backends", "sockets", closed.Total(), "namespace", shown(path))
			}
			if err != nil && !os.IsNotExist(err) {
				a.tellUnclosed(path, err)
			}
		}
	}
}

// tellUnclosed says once what an operator can mend. The rest is of namespaces
// that come and go.
func (a *Agent) tellUnclosed(namespace string, err error) {
	level := slog.LevelDebug
	if errors.Is(err, fs.ErrPermission) && !a.toldUnclosed {
		a.toldUnclosed, level = true, slog.LevelWarn
		err = fmt.Errorf("%w; give the agent CAP_SYS_ADMIN, or --netns-dir \"\" to leave other namespaces alone", err)
	}
	a.log.Log(context.Background(), level, "cannot close UDP sockets of stopped backends", "namespace", shown(namespace), "error", err)
}

func shown(namespace string) string {
	if namespace == "" {
		return "own"
	}
	return namespace
}

// namespaces are those whose sockets this agent may close: its own, and the
// named ones.
func (a *Agent) namespaces() []string {
	paths := []string{""}
	if a.cfg.Options.NetnsDir == "" {
		return paths
	}
	entries, err := os.ReadDir(a.cfg.Options.NetnsDir)
	if err != nil {
		return paths
	}
	for _, e := range entries {
		paths = append(paths, filepath.Join(a.cfg.Options.NetnsDir, e.Name()))
	}
	return paths
}

// latencies remembers how long the last changes took to reach the tables.
type latencies struct {
	last  time.Time
	ring  [512]time.Duration
	count int
}

func (l *latencies) add(d time.Duration, now time.Time) {
	l.ring[l.count%len(l.ring)] = d
	l.count++
	l.last = now
}

// quantile returns the q-th part of the remembered times; 0 without any.
func (l *latencies) quantile(q float64) time.Duration {
	known := slices.Clone(l.ring[:min(l.count, len(l.ring))])
	if len(known) == 0 {
		return 0
	}
	slices.Sort(known)
	return known[min(int(q*float64(len(known))), len(known)-1)]
}
