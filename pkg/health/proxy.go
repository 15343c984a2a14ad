// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"sync"
	"time"

	"portolan.dev/portolan/pkg/service"
)

// StaleAfter is how long a change may wait for the tables before the proxy
// calls itself sick: twice kube-proxy's sync period, as there.
const StaleAfter = time.Minute

// Fault is something that keeps traffic from being translated.
type Fault struct {
	// Family is whose traffic it is; 0 is that of both.
	Family service.Family
	Reason string
}

// State is all that the answers about the proxy depend on.
type State struct {
	// Updated is when the tables were last right; zero: not yet.
	Updated time.Time
	// Queued is since when a change has waited to get into the tables; zero:
	// none does.
	Queued time.Time
	// Adopted: tables of an earlier agent serve until everything has been seen.
	Adopted bool
	// Ineligible says why this node should get no new connections; empty: it
	// should. It is for load balancers: existing connections go on.
	Ineligible string
	// Faults are what the dataplane itself was found to lack.
	Faults []Fault
}

// Report is the body of an answer, with kube-proxy's names, and the reasons of
// a bad one.
type Report struct {
	// LastUpdated is the time of the answer when that is good.
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	// NodeEligible is told by /healthz only.
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]FamilyReport `json:"status,omitempty"`
	Reasons      []string                `json:"reasons,omitempty"`
	code         int
}

// FamilyReport is one family's part of a Report.
type FamilyReport struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Question is a path that is asked for.
type Question string

// The questions. Live asks whether a restart would help; Ready whether the
// agent has taken over; Health, for load balancers, whether new connections
// should come to this node.
const (
	Live   Question = "/livez"
	Ready  Question = "/readyz"
	Health Question = "/healthz"
)

// Answer is what a question is answered at a time. It is pure.
func (s *State) Answer(q Question, now time.Time) Report {
	r := Report{LastUpdated: s.Updated, CurrentTime: now, Healthy: true, Status: map[string]FamilyReport{}}
	sick := map[service.Family]bool{}
	for _, f := range s.Faults {
		r.Reasons = append(r.Reasons, f.Reason)
		for _, family := range []service.Family{service.IPv4, service.IPv6} {
			sick[family] = sick[family] || f.Family == family || f.Family == 0
		}
	}
	if !s.Queued.IsZero() && now.Sub(s.Queued) >= StaleAfter {
		r.Reasons = append(r.Reasons, "a change has been waiting for the tables since "+s.Queued.UTC().Format(time.RFC3339))
		sick[service.IPv4], sick[service.IPv6] = true, true
	}
	switch {
	case !s.Updated.IsZero(), q == Live, q == Health && s.Adopted:
		// A restart helps nobody who waits for the API server; and what an
		// earlier agent left serves on.
	default:
		r.Reasons = append(r.Reasons, "not everything has been seen yet")
		sick[service.IPv4], sick[service.IPv6] = true, true
	}
	for _, family := range []service.Family{service.IPv4, service.IPv6} {
		r.Status[family.String()] = FamilyReport{LastUpdated: s.Updated, Healthy: !sick[family]}
		r.Healthy = r.Healthy && !sick[family]
	}
	good := r.Healthy
	if q == Health {
		eligible := s.Ineligible == ""
		r.NodeEligible = &eligible
		if !eligible {
			good = false
			r.Reasons = append(r.Reasons, s.Ineligible)
		}
	}
	r.code = 503
	if good {
		r.code, r.LastUpdated = 200, now
	}
	return r
}

// Code is the HTTP status of the answer: 200 or 503.
func (r *Report) Code() int { return r.code }

// Proxy keeps the State and counts answers. Its methods may be called by any
// goroutine and never wait long: who asks must get an answer when the rest of
// the agent is stuck.
type Proxy struct {
	mu      sync.Mutex
	state   State
	answers map[Answers]uint64
}

// Answers names a kind of answer, to be counted.
type Answers struct {
	Question Question
	Code     int
}

// NewProxy returns a Proxy of an agent that has just begun. adopted: tables of
// an earlier one serve.
func NewProxy(adopted bool) *Proxy {
	return &Proxy{state: State{Adopted: adopted}, answers: map[Answers]uint64{}}
}

// Queue notes that a change waits. Before the first Update nothing does: it is
// the API server that is waited for.
func (p *Proxy) Queue(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Queued.IsZero() && !p.state.Updated.IsZero() {
		p.state.Queued = now
	}
}

// Begin notes that tables are about to be written; also for the first time.
func (p *Proxy) Begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Queued.IsZero() {
		p.state.Queued = now
	}
}

// Update notes that the tables are right.
func (p *Proxy) Update(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Updated, p.state.Queued = now, time.Time{}
}

// SetNode notes why this node should get no new connections; empty: it should.
func (p *Proxy) SetNode(ineligible string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Ineligible = ineligible
}

// SetFaults notes what the dataplane lacks.
func (p *Proxy) SetFaults(list []Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Faults = slices.Clone(list)
}

// Answer answers a question now.
func (p *Proxy) Answer(q Question, now time.Time) Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Answer(q, now)
}

// Healthy tells whether the proxy works, whatever becomes of the node: health
// checks of Services depend on it.
func (p *Proxy) Healthy() bool {
	r := p.Answer(Live, time.Now())
	return r.Healthy
}

// Counts returns how many answers of each kind were given over HTTP.
func (p *Proxy) Counts() map[Answers]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[Answers]uint64, len(p.answers))
	for a, n := range p.answers {
		out[a] = n
	}
	return out
}
