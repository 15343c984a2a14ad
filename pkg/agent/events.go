// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// EventSink posts Events beside the objects that they are about.
type EventSink interface {
	PostEvent(ctx context.Context, e source.Event) error
}

// How fast Events are posted: what is wrong with many Services at once must
// not become a load on the API server, which hears of it from every node.
const (
	eventEvery     = 2 * time.Second
	eventAfterFail = 30 * time.Second
	// eventAgain is when an Event of what is still wrong has expired.
	eventAgain = time.Hour
)

// teller posts Events about problems of Services, each once while it lasts and
// again every hour. Without a sink it does nothing.
type teller struct {
	sink  EventSink
	log   *slog.Logger
	every time.Duration // between two Events
	pause time.Duration // after one that could not be posted
	wake  chan struct{}

	mu   sync.Mutex
	open map[service.Problem]time.Time // when it is to be told next
	line []service.Problem             // those never told, in the order they came
}

func newTeller(sink EventSink, log *slog.Logger) *teller {
	return &teller{sink: sink, log: log, every: eventEvery, pause: eventAfterFail,
		wake: make(chan struct{}, 1), open: map[service.Problem]time.Time{}}
}

// came notes a problem. It never waits.
func (t *teller) came(p service.Problem) {
	if _, ok := eventOf(p); !ok || t.sink == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.open[p]; !known {
		t.open[p] = time.Time{}
		t.line = append(t.line, p)
		notify(t.wake)
	}
}

// went notes that a problem is mended. If it comes back within the hour it is
// the same Event, which the API server has.
func (t *teller) went(p service.Problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, p)
}

// next is the problem to be told now, or how long there is none.
func (t *teller) next(now time.Time) (service.Problem, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.line) > 0 {
		p := t.line[0]
		t.line = t.line[1:]
		if at, still := t.open[p]; still && at.IsZero() {
			return p, 0
		}
	}
	wait := eventAgain
	for p, at := range t.open {
		if left := at.Sub(now); left <= 0 {
			return p, 0
		} else if left < wait {
			wait = left
		}
	}
	return service.Problem{}, wait
}

// told notes when a problem is to be told next.
func (t *teller) told(p service.Problem, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, still := t.open[p]; still {
		t.open[p] = at
	}
}

// run posts Events until ctx ends.
func (t *teller) run(ctx context.Context) error {
	if t.sink == nil {
		<-ctx.Done()
		return nil
	}
	failing := false
	for ctx.Err() == nil {
		p, wait := t.next(time.Now())
		if wait > 0 {
			select {
			case <-ctx.Done():
			case <-t.wake:
			case <-time.After(wait):
			}
			continue
		}
		e, _ := eventOf(p)
		err := t.sink.PostEvent(ctx, e)
		pause, again := t.every, eventAgain
		switch {
		case err == nil:
		case errors.Is(err, source.ErrMayNotPost):
			pause, again = eventAgain, 0
		default:
			pause, again = t.pause, 0
		}
		if err != nil {
			if !failing && ctx.Err() == nil {
				t.log.Warn("cannot post an Event, trying again", "object", p.Object, "error", err)
			}
		}
		failing = err != nil
		t.told(p, time.Now().Add(again))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// eventOf is the Event of a problem; false for what is no Service's.
func eventOf(p service.Problem) (source.Event, bool) {
	name, ok := strings.CutPrefix(p.Object, "Service ")
	namespace, name, named := strings.Cut(name, "/")
	if !ok || !named {
		return source.Event{}, false
	}
	e := source.Event{Service: service.Name{Namespace: namespace, Name: name}, Note: p.Message, Reason: upperCamel(p.Reason)}
	switch p.Reason {
	case service.ReasonHealthPort:
		e.Reason, e.OnNode = "FailedToStartServiceHealthcheck", true // kube-proxy's word
	case service.ReasonNodePortHeld:
		e.Reason, e.OnNode = "NodePortHeld", true
	case service.ReasonTableFull, service.ReasonNotWritten:
		e.OnNode = true
	}
	return e, true
}

// upperCamel is "frontend-conflict" as FrontendConflict.
func upperCamel(reason string) string {
	var out strings.Builder
	for _, word := range strings.Split(reason, "-") {
		if word != "" {
			out.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return out.String()
}
