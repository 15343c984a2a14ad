// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"portolan.dev/portolan/test/world"
)

// traffic is a hammer that runs through several claims, each of which wants to
// know what has come back since the last.
type traffic struct {
	*demo
	hammer *world.Hammer
	last   world.Report // where the current claim begins
}

// since returns what has come back since mark was last called.
func (t *traffic) since() (world.Report, error) {
	now, err := t.hammer.Report()
	if err != nil {
		return now, err
	}
	now.Total -= t.last.Total
	now.Failed -= t.last.Failed
	now.Failures = now.Failures[min(len(t.last.Failures), len(now.Failures)):]
	for name, n := range t.last.Backends {
		if now.Backends[name] -= n; now.Backends[name] == 0 {
			delete(now.Backends, name)
		}
	}
	return now, nil
}

// mark begins a new claim.
func (t *traffic) mark() (err error) {
	t.last, err = t.hammer.Report()
	return err
}

// enough waits until a window of requests has been answered since the mark.
func (t *traffic) enough() (world.Report, error) {
	var r world.Report
	err := t.wait("enough requests are answered", nil, func() (done bool, err error) {
		r, err = t.since()
		return r.Total >= window, err
	})
	return r, err
}

// appears writes a change and waits until a new pod answers.
func (t *traffic) appears(pod, change string) (time.Duration, error) {
	began := time.Now()
	if err := t.replace("web-slices.yaml", "changes/"+change); err != nil {
		return 0, err
	}
	err := t.until(pod+" answers", func() (bool, error) {
		r, err := t.since()
		return r.Backends[pod] > 0, err
	})
	return time.Since(began), err
}

// replacePod lets web-4 take the place of web-3, which is removed once it gets
// no requests any more.
func (t *traffic) replacePod() error {
	before, err := t.enough()
	if err != nil {
		return err
	}
	t.claim(fair(before, []string{"web-1", "web-2", "web-3"}), "before", fmt.Sprintf("%d failed", before.Failed),
		"%s", t.bars(before))
	if err := t.addReplica(replica{"web-4", 14, []string{"http:8080"}}); err != nil {
		return err
	}
	if err := t.mark(); err != nil {
		return err
	}
	took, err := t.appears("web-4", "web-3-gives-way-to-web-4.yaml")
	if err != nil {
		return err
	}
	during, err := t.since()
	if err != nil {
		return err
	}
	t.claim(during.Failed == 0, "change", fmt.Sprintf("%d failed", during.Failed),
		"web-4 answers %.1f ms after its slice was written; then web-3 is removed", float64(took.Microseconds())/1000)
	// What was under way to web-3 when the tables changed ends in a window.
	if err := t.mark(); err != nil {
		return err
	}
	if _, err := t.enough(); err != nil {
		return err
	}
	if err := t.pods["web-3"].Remove(); err != nil {
		return err
	}
	if err := t.mark(); err != nil {
		return err
	}
	after, err := t.enough()
	if err != nil {
		return err
	}
	t.claim(fair(after, []string{"web-1", "web-2", "web-4"}), "after", fmt.Sprintf("%d failed", after.Failed),
		"%s", t.bars(after))
	return nil
}

// withoutAgent kills the agent and shows what does not need it.
func (t *traffic) withoutAgent() error {
	t.agent.Kill()
	if err := t.mark(); err != nil {
		return err
	}
	out, cliErr := t.cli("services", "10.96.0.10")
	report, err := t.enough()
	if err != nil {
		return err
	}
	t.claim(fair(report, []string{"web-1", "web-2", "web-4"}), "kill -9", fmt.Sprintf("%d failed", report.Failed),
		"%s", t.bars(report))
	pinned := cliErr == nil && strings.Contains(out, "10.96.0.10") && strings.Contains(out, "10.244.1.14")
	seen := "reads the pinned maps and shows web's endpoints"
	if !pinned {
		seen = fmt.Sprintf("does not show web's endpoints: %v %s", cliErr, strings.TrimSpace(out))
	}
	t.claim(pinned, "services", "no agent", "portolan services %s", seen)
	return nil
}

// restart starts the agent again and shows that it adopts what is there and
// obeys the next change.
func (t *traffic) restart() error {
	if err := t.mark(); err != nil {
		return err
	}
	if err := t.startAgent("agent-again"); err != nil {
		return err
	}
	if err := t.until("the new agent has synced", func() (bool, error) {
		synced, _ := t.cli("status", "-o", "jsonpath={.synced}") // fails until the agent listens
		return strings.TrimSpace(synced) == "true", nil
	}); err != nil {
		return err
	}
	adoption, err := t.enough()
	if err != nil {
		return err
	}
	t.claim(adoption.Failed == 0, "restart", fmt.Sprintf("%d failed", adoption.Failed),
		"%d requests while a new agent adopts the pinned tables", adoption.Total)
	if err := t.addReplica(replica{"web-5", 15, []string{"http:8080"}}); err != nil {
		return err
	}
	if err := t.mark(); err != nil {
		return err
	}
	if _, err := t.appears("web-5", "web-5-joins.yaml"); err != nil {
		return err
	}
	if err := t.mark(); err != nil {
		return err
	}
	report, err := t.enough()
	if err != nil {
		return err
	}
	t.claim(fair(report, []string{"web-1", "web-2", "web-4", "web-5"}), "scale up", fmt.Sprintf("%d failed", report.Failed),
		"%s", t.bars(report))
	return nil
}
