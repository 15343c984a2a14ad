// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

func TestProblemsOfServicesAreEventsAndOthersAreNot(t *testing.T) {
	t.Parallel()
	name := service.Name{Namespace: "shop", Name: "store"}
	for _, c := range []struct {
		problem service.Problem
		want    source.Event
		ok      bool
	}{
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonConflict, Message: "m"},
			source.Event{Service: name, Reason: "FrontendConflict", Note: "m"}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonHealthPort, Message: "m"},
			source.Event{Service: name, Reason: "FailedToStartServiceHealthcheck", Note: "m", OnNode: true}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonNodePortHeld, Message: "m"},
			source.Event{Service: name, Reason: "NodePortHeld", Note: "m", OnNode: true}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonTableFull, Message: "m"},
			source.Event{Service: name, Reason: "TableFull", Note: "m", OnNode: true}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonNotWritten, Message: "m"},
			source.Event{Service: name, Reason: "NotWritten", Note: "m", OnNode: true}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonInvalidAddress, Message: "m"},
			source.Event{Service: name, Reason: "InvalidAddress", Note: "m"}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonInvalidPort, Message: "m"},
			source.Event{Service: name, Reason: "InvalidPort", Note: "m"}, true},
		{service.Problem{Object: "Service shop/store", Reason: service.ReasonNotAllowed, Message: "m"},
			source.Event{Service: name, Reason: "NotAllowed", Note: "m"}, true},
		{service.Problem{Object: "EndpointSlice shop/store-1", Reason: service.ReasonWrongFamily}, source.Event{}, false},
		{service.Problem{Object: "agent", Reason: service.ReasonNotWritten}, source.Event{}, false},
	} {
		if got, ok := eventOf(c.problem); ok != c.ok || got != c.want {
			t.Errorf("%v is %+v, %v; want %+v, %v", c.problem, got, ok, c.want, c.ok)
		}
	}
}

// sink takes Events, or refuses them with err.
type sink struct {
	mu     sync.Mutex
	err    error
	posted chan source.Event
}

func (s *sink) PostEvent(_ context.Context, e source.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posted <- e
	return s.err
}

func (s *sink) answer(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// telling runs a teller without pauses until the end of the test.
func telling(t *testing.T, s *sink) *teller {
	t.Helper()
	teller := newTeller(s, slog.New(slog.DiscardHandler))
	teller.every, teller.pause = 0, 0
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := teller.run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); running.Wait() })
	return teller
}

func (s *sink) wait(t *testing.T) source.Event {
	t.Helper()
	select {
	case e := <-s.posted:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no Event was posted")
		return source.Event{}
	}
}

func problemOf(name string) service.Problem {
	return service.Problem{Object: "Service shop/" + name, Reason: service.ReasonConflict, Message: "another has it"}
}

func TestEachProblemIsToldOnceInTheOrderTheyCame(t *testing.T) {
	t.Parallel()
	s := &sink{posted: make(chan source.Event, 100)}
	teller := telling(t, s)
	var got []string
	for _, name := range []string{"a", "b", "a", "c", "b"} {
		teller.came(problemOf(name))
	}
	teller.came(problemOf("last"))
	for {
		e := s.wait(t)
		got = append(got, e.Service.Name)
		if e.Service.Name == "last" {
			break
		}
	}
	if want := []string{"a", "b", "c", "last"}; !slices.Equal(got, want) {
		t.Errorf("told of %v, want %v", got, want)
	}
}

func TestAnEventThatCannotBePostedIsPostedLater(t *testing.T) {
	t.Parallel()
	s := &sink{posted: make(chan source.Event), err: errors.New("no API server")}
	teller := telling(t, s)
	teller.came(problemOf("a"))
	for range 3 {
		s.wait(t)
	}
	// The sink hands an Event over under its lock: the next one is let through.
	go s.answer(nil)
	s.wait(t)
	deadline := time.After(10 * time.Second)
	for {
		_, wait := teller.next(time.Now())
		if wait > time.Minute {
			return
		}
		select {
		case <-s.posted:
		case <-deadline:
			t.Fatal("it is still to be told")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestWhatIsMendedBeforeItIsToldIsNotTold(t *testing.T) {
	t.Parallel()
	teller := newTeller(&sink{}, slog.New(slog.DiscardHandler))
	teller.came(problemOf("a"))
	teller.came(problemOf("b"))
	teller.went(problemOf("a"))
	if p, wait := teller.next(time.Now()); wait != 0 || !strings.HasSuffix(p.Object, "/b") {
		t.Errorf("next is %v in %v, want that of b", p, wait)
	}
}

func TestWhatLastsIsToldAgainAfterAnHour(t *testing.T) {
	t.Parallel()
	now := time.Now()
	teller := newTeller(&sink{}, slog.New(slog.DiscardHandler))
	teller.came(problemOf("a"))
	p, _ := teller.next(now)
	teller.told(p, now.Add(eventAgain))
	if _, wait := teller.next(now.Add(time.Minute)); wait != 59*time.Minute {
		t.Errorf("told again in %v, want 59m", wait)
	}
	if again, wait := teller.next(now.Add(time.Hour)); again != p || wait != 0 {
		t.Errorf("after an hour %v is told in %v", again, wait)
	}
}

func TestWithoutAnAPIServerNothingIsKept(t *testing.T) {
	t.Parallel()
	teller := newTeller(nil, slog.New(slog.DiscardHandler))
	teller.came(problemOf("a"))
	if len(teller.open) > 0 || len(teller.line) > 0 {
		t.Error("a problem is kept that nobody will be told")
	}
}
