// SPDX-License-Identifier: Apache-2.0

// Package source is where Services come from: the queue that a source fills
// and the agent empties, and the conversion of Kubernetes' objects to the model
// of pkg/service. The sources themselves are in the packages below it.
//
// It imports pkg/service and the Kubernetes API types; Kubernetes ends here.
// The invariant it guards: what is invalid is left out by name, and never takes
// anything valid down with it.
package source

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"portolan.dev/portolan/pkg/service"
)

// Update is what changed since the last one: the latest state of each object,
// nil for one that is gone.
type Update struct {
	Services map[service.Name]*service.Service
	Slices   map[service.Name]*service.EndpointSlice
	// Node is nil when nothing is new about it.
	Node *service.Node
	// ServiceCIDRs are the current ones, in every update; CIDRsKnown says
	// whether the source knows of such objects at all.
	ServiceCIDRs []netip.Prefix
	CIDRsKnown   bool
	// Problems by object; an empty list says that it is mended.
	Problems map[string][]service.Problem
	// Synced: everything has been seen at least once. Once true it stays so.
	Synced bool
	// Triggered is when the oldest change of the batch was seen.
	Triggered time.Time
}

// ResourceStatus is how a source stands with one kind of object.
type ResourceStatus struct {
	Resource  string `json:"resource"`
	Connected bool   `json:"connected"`
	// Since is when Connected became what it is.
	Since time.Time `json:"since"`
	// LastEvent is when something was last learnt; zero if nothing was.
	LastEvent time.Time `json:"lastEvent"`
	// Error is why it is not connected.
	Error   string `json:"error,omitempty"`
	Objects int    `json:"objects"`
}

// Queue holds the latest state of every object that changed. Its size is
// bounded by the number of objects, however fast they change. All methods may
// be called from any goroutine; those that add never wait for who takes.
type Queue struct {
	mu      sync.Mutex
	pending Update
	dirty   bool
	filled  chan struct{}
	status  map[string]ResourceStatus
}

// NewQueue returns an empty queue.
func NewQueue() *Queue {
	q := &Queue{filled: make(chan struct{}, 1), status: map[string]ResourceStatus{}}
	q.pending = q.fresh()
	return q
}

func (q *Queue) fresh() Update {
	return Update{
		Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.EndpointSlice{},
		Problems:     map[string][]service.Problem{},
		ServiceCIDRs: q.pending.ServiceCIDRs, CIDRsKnown: q.pending.CIDRsKnown, Synced: q.pending.Synced,
	}
}

// add changes the pending update under the lock.
func (q *Queue) add(change func(*Update)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.dirty {
		q.dirty = true
		q.pending.Triggered = time.Now()
	}
	change(&q.pending)
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// SetService tells the state of a Service; nil: it is gone.
func (q *Queue) SetService(name service.Name, s *service.Service) {
	q.add(func(u *Update) { u.Services[name] = s })
}

// SetSlice tells the state of an EndpointSlice; nil: it is gone.
func (q *Queue) SetSlice(name service.Name, s *service.EndpointSlice) {
	q.add(func(u *Update) { u.Slices[name] = s })
}

// SetNode tells what this node is.
func (q *Queue) SetNode(n service.Node) { q.add(func(u *Update) { u.Node = &n }) }

// SetCIDRs tells the service CIDRs of the cluster.
func (q *Queue) SetCIDRs(cidrs []netip.Prefix) {
	q.mu.Lock()
	same := q.pending.CIDRsKnown && slices.Equal(q.pending.ServiceCIDRs, cidrs)
	q.mu.Unlock()
	if !same {
		q.add(func(u *Update) { u.ServiceCIDRs, u.CIDRsKnown = cidrs, true })
	}
}

// SetProblems tells what is wrong with an object; an empty list: nothing.
func (q *Queue) SetProblems(key string, list []service.Problem) {
	q.add(func(u *Update) { u.Problems[key] = list })
}

// SetSynced tells that everything has been seen once.
func (q *Queue) SetSynced() {
	q.mu.Lock()
	same := q.pending.Synced
	q.mu.Unlock()
	if !same {
		q.add(func(u *Update) { u.Synced = true })
	}
}

// Batch makes several changes visible as one.
func (q *Queue) Batch(change func(*Update)) { q.add(change) }

// Take waits for changes and returns all there are.
func (q *Queue) Take(ctx context.Context) (Update, error) {
	for {
		q.mu.Lock()
		if q.dirty {
			u := q.pending
			q.dirty = false
			q.pending = q.fresh()
			q.mu.Unlock()
			return u, nil
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return Update{}, ctx.Err()
		case <-q.filled:
		}
	}
}

// SetStatus tells how the source stands with a kind of object. Since is kept
// while Connected does not change, and LastEvent if the new one is zero.
func (q *Queue) SetStatus(s ResourceStatus) {
	q.mu.Lock()
	defer q.mu.Unlock()
	old, known := q.status[s.Resource]
	if known && old.Connected == s.Connected {
		s.Since = old.Since
	}
	if s.LastEvent.IsZero() {
		s.LastEvent = old.LastEvent
	}
	q.status[s.Resource] = s
}

// Status returns how the source stands with each kind of object, by name.
func (q *Queue) Status() []ResourceStatus {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]ResourceStatus, 0, len(q.status))
	for _, s := range q.status {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ResourceStatus) int { return strings.Compare(a.Resource, b.Resource) })
	return out
}
