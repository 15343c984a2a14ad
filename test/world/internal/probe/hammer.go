// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// keptFailures bounds the memory of a hammer whose every dial fails.
const keptFailures = 1000

// hammer dials one address from several goroutines until it is stopped or has
// dialled often enough, and counts what came back.
type hammer struct {
	began time.Time
	done  chan struct{} // closed to stop
	stop  func()        // closes done once
	wg    sync.WaitGroup

	mu     sync.Mutex // guards the rest
	left   int        // dials still to hand out; negative = no limit
	report Report
}

func startHammer(req Request) *hammer {
	h := &hammer{began: time.Now(), done: make(chan struct{}), left: -1}
	h.stop = sync.OnceFunc(func() { close(h.done) })
	h.report.Backends = map[string]int{}
	if req.Count > 0 {
		h.left = req.Count
	}
	for range max(req.Workers, 1) {
		h.wg.Go(func() { h.work(req) })
	}
	return h
}

func (h *hammer) work(req Request) {
	for h.take() {
		began := time.Now()
		h.count(began, dial(req.Proto, req.Addr, req.Options))
		if req.Pause > 0 {
			select {
			case <-h.done:
			case <-time.After(req.Pause):
			}
		}
	}
}

// take says whether one more dial is to be made.
func (h *hammer) take() bool {
	select {
	case <-h.done:
		return false
	default:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left == 0 {
		return false
	}
	if h.left > 0 {
		h.left--
	}
	return true
}

func (h *hammer) count(began time.Time, r Result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report.Total++
	if r.OK() {
		h.report.Backends[r.Backend]++
		return
	}
	h.report.Failed++
	if len(h.report.Failures) < keptFailures {
		h.report.Failures = append(h.report.Failures, Failure{began, r.Stage, r.Errno, r.Problem})
	}
}

// wait blocks until every worker has ended and returns the last report.
func (h *hammer) wait() Report {
	h.wg.Wait()
	return h.snapshot()
}

// snapshot copies the report, which workers go on changing.
func (h *hammer) snapshot() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.report
	r.Backends = maps.Clone(r.Backends)
	r.Failures = slices.Clone(r.Failures)
	r.Elapsed = time.Since(h.began)
	return r
}

// unlimited says whether only a stop ends the hammer; one with a count ends by
// itself, and stopping it means waiting for that.
func (h *hammer) unlimited() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.left < 0
}
