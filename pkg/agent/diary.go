// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// diary writes a log line per change of substance, and no more than people can
// read: of a burst it counts what it leaves out.
type diary struct {
	log     *slog.Logger
	second  time.Time
	lines   int
	skipped int
}

// linesPerSecond is what a burst may fill the log with.
const linesPerSecond = 20

func (d *diary) write(changes []compile.Change, took time.Duration) {
	if len(changes) == 0 {
		return
	}
	now := time.Now()
	if now.Sub(d.second) >= time.Second {
		if d.skipped > 0 {
			d.log.Info("more service ports changed", "changes", d.skipped)
		}
		d.second, d.lines, d.skipped = now, 0, 0
	}
	for i := range changes {
		if d.lines == linesPerSecond {
			d.skipped += len(changes) - i
			return
		}
		d.lines++
		d.line(&changes[i], took)
	}
}

func (d *diary) line(ch *compile.Change, took time.Duration) {
	id := ch.ID
	port := slog.String("port", id.Port+"/"+id.Protocol.String()+"/"+id.Family.String())
	if ch.Port == nil {
		d.log.Info("service port removed", "service", id.Service.String(), port)
		return
	}
	d.log.Info("service port changed", "service", id.Service.String(), port,
		"frontends", len(ch.Port.Frontends), "endpoints", len(ch.Port.Cluster), "local", len(ch.Port.Local), "took", took)
}

// problems are all that is wrong now, by what found it. Each is logged when it
// comes and when it goes.
type problems struct {
	log      *slog.Logger
	mu       *sync.Mutex
	byKey    map[string][]service.Problem
	compiled uint64
	teller   *teller
}

func newProblems(log *slog.Logger, teller *teller) problems {
	return problems{log: log, teller: teller, mu: &sync.Mutex{}, byKey: map[string][]service.Problem{}}
}

func (p *problems) set(key string, list []service.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.byKey[key]
	if slices.Equal(old, list) {
		return
	}
	for _, x := range list {
		if !slices.Contains(old, x) {
			p.log.Warn(x.Message, "object", x.Object, "reason", x.Reason)
			p.teller.came(x)
		}
	}
	for _, x := range old {
		if !slices.Contains(list, x) {
			p.log.Info("mended: "+x.Message, "object", x.Object, "reason", x.Reason)
			p.teller.went(x)
		}
	}
	if len(list) == 0 {
		delete(p.byKey, key)
		return
	}
	p.byKey[key] = list
}

// all returns every problem, sorted by object.
func (p *problems) all() []service.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []service.Problem{}
	for _, list := range p.byKey {
		out = append(out, list...)
	}
	slices.SortStableFunc(out, func(a, b service.Problem) int {
		switch {
		case a.Object < b.Object:
			return -1
		case a.Object > b.Object:
			return 1
		}
		return 0
	})
	return out
}

// errorProblem is a failure of the agent's own as a problem.
func errorProblem(err error) []service.Problem {
	if err == nil {
		return nil
	}
	return []service.Problem{{Object: "agent", Reason: service.ReasonNotWritten, Message: err.Error()}}
}
