// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
)

func named(name string) service.Name { return service.Name{Namespace: "default", Name: name} }

func take(t *testing.T, q *Queue) Update {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	u, err := q.Take(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestOnlyTheLatestStateOfAnObjectIsHandedOver(t *testing.T) {
	q := NewQueue()
	old, latest := &service.Service{}, &service.Service{}
	q.SetService(named("web"), old)
	q.SetService(named("web"), latest)
	q.SetService(named("gone"), old)
	q.SetService(named("gone"), nil)
	u := take(t, q)
	if len(u.Services) != 2 || u.Services[named("web")] != latest {
		t.Errorf("services %v", u.Services)
	}
	if s, told := u.Services[named("gone")]; s != nil || !told {
		t.Error("that a Service is gone is not told")
	}
}

func TestWhatWasHandedOverIsNotHandedOverAgain(t *testing.T) {
	q := NewQueue()
	q.SetService(named("web"), &service.Service{})
	q.SetSlice(named("web-1"), &service.EndpointSlice{})
	q.SetNode(service.Node{Name: "n1"})
	q.SetProblems("Service default/web", []service.Problem{{}})
	q.SetCIDRs(prefixes("10.96.0.0/12"))
	take(t, q)
	q.SetSynced()
	u := take(t, q)
	if len(u.Services)+len(u.Slices)+len(u.Problems) != 0 || u.Node != nil {
		t.Errorf("%+v", u)
	}
	if !u.Synced || !u.CIDRsKnown || !equal(u.ServiceCIDRs, prefixes("10.96.0.0/12")) {
		t.Errorf("what stays true is not said again: %+v", u)
	}
}

func TestWhatStaysAsItIsWakesNobody(t *testing.T) {
	q := NewQueue()
	q.SetCIDRs(prefixes("10.96.0.0/12"))
	q.SetSynced()
	take(t, q)
	q.SetCIDRs(prefixes("10.96.0.0/12"))
	q.SetSynced()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if u, err := q.Take(ctx); err == nil {
		t.Errorf("took %+v", u)
	}
}

func TestTheOldestChangeOfABatchIsItsTime(t *testing.T) {
	q := NewQueue()
	before := time.Now()
	q.SetService(named("a"), nil)
	between := time.Now()
	q.SetService(named("b"), nil)
	if u := take(t, q); u.Triggered.Before(before) || u.Triggered.After(between) {
		t.Errorf("triggered %v, want between %v and %v", u.Triggered, before, between)
	}
	q.SetService(named("c"), nil)
	if u := take(t, q); u.Triggered.Before(between) {
		t.Error("a batch has the time of the one before")
	}
}

func TestTakeWaitsUntilThereIsSomethingOrItsContextEnds(t *testing.T) {
	q := NewQueue()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := q.Take(ctx)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	go q.SetSynced()
	if u := take(t, q); !u.Synced {
		t.Errorf("%+v", u)
	}
}

// Producers never wait, and whatever they race, the last state arrives.
func TestNoChangeIsLostBetweenManyProducersAndATaker(t *testing.T) {
	q := NewQueue()
	const producers, rounds = 4, 500
	var running sync.WaitGroup
	for p := range producers {
		running.Go(func() {
			for i := range rounds {
				q.SetSlice(named(strconv.Itoa(p)), &service.EndpointSlice{Service: strconv.Itoa(i)})
			}
		})
	}
	last := map[service.Name]string{}
	done := func() bool {
		for p := range producers {
			if last[named(strconv.Itoa(p))] != strconv.Itoa(rounds-1) {
				return false
			}
		}
		return true
	}
	for !done() {
		for name, s := range take(t, q).Slices {
			last[name] = s.Service
		}
	}
	running.Wait()
}

func TestStatusKeepsSinceAndTheLastEvent(t *testing.T) {
	q := NewQueue()
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	q.SetStatus(ResourceStatus{Resource: "services", Connected: true, Since: at(1), LastEvent: at(1), Objects: 1})
	q.SetStatus(ResourceStatus{Resource: "nodes", Since: at(1), Error: "refused"})
	q.SetStatus(ResourceStatus{Resource: "services", Connected: true, Since: at(2), LastEvent: at(2), Objects: 2})
	q.SetStatus(ResourceStatus{Resource: "nodes", Since: at(2), Error: "refused"})
	want := []ResourceStatus{
		{Resource: "nodes", Since: at(1), Error: "refused"},
		{Resource: "services", Connected: true, Since: at(1), LastEvent: at(2), Objects: 2},
	}
	if got := q.Status(); !equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	q.SetStatus(ResourceStatus{Resource: "services", Since: at(3), Error: "refused", Objects: 2})
	if got := q.Status()[1]; got.Since != at(3) || got.LastEvent != at(2) {
		t.Errorf("after it went away: %+v", got)
	}
}
