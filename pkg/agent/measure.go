// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/metrics"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// measure notes how long a batch took that is in the tables now.
func (a *Agent) measure(u source.Update, changes []compile.Change, begin time.Time, first bool) {
	now := time.Now()
	in := touchedFamilies(changes)
	if first {
		in = []service.Family{service.IPv4, service.IPv6}
	}
	a.recorder.Synced(in, now.Sub(begin), first)
	if first || len(changes) == 0 {
		return // a first load tells of the cluster's past
	}
	took := now.Sub(since(u.Triggered, begin))
	a.programming.add(took, now)
	a.recorder.Programmed(took)
	for _, sl := range u.Slices {
		if sl != nil && sl.ChangedAt.After(a.started) {
			a.recorder.NetworkProgrammed(sl.Family, max(0, now.Sub(sl.ChangedAt)))
		}
	}
}

func touchedFamilies(changes []compile.Change) []service.Family {
	seen := map[service.Family]bool{}
	for i := range changes {
		seen[changes[i].ID.Family] = true
	}
	var out []service.Family
	for _, f := range []service.Family{service.IPv4, service.IPv6} {
		if seen[f] {
			out = append(out, f)
		}
	}
	return out
}

// Served implements metrics.Provider.
func (a *Agent) Served() metrics.Served {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := metrics.Served{Frontends: map[metrics.Frontends]int{}, NoLocal: map[metrics.NoLocal]int{}}
	for p := range a.compiler.Ports() {
		var lacking [2]bool // for internal and external traffic
		for i := range p.Frontends {
			f := &p.Frontends[i]
			if f.Kind == compile.Elsewhere {
				continue
			}
			s.Frontends[metrics.Frontends{Family: p.ID.Family, Kind: f.Kind.String()}]++
			if len(p.Local) == 0 && !p.Refuse {
				lacking[0] = lacking[0] || f.Kind == compile.ClusterIP && f.Internal == compile.Local
				lacking[1] = lacking[1] || f.Kind != compile.ClusterIP && f.External == compile.Local
			}
		}
		for i, policy := range []string{"internal", "external"} {
			if lacking[i] {
				s.NoLocal[metrics.NoLocal{Family: p.ID.Family, Policy: policy}]++
			}
		}
	}
	return s
}

// Answers implements metrics.Provider.
func (a *Agent) Answers() map[health.Answers]uint64 { return a.proxy.Counts() }
