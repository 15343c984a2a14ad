// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	"portolan.dev/portolan/test/world"
)

const (
	// patience is how long a change may take to show. It matters to tests that
	// fail only; kube-proxy beside other work takes seconds.
	patience = 30 * time.Second
	// rolloutLimit is patience for a Deployment, whose pods take their grace
	// period one after the other.
	rolloutLimit = 2 * time.Minute
	// impatient is how long a client waits while a test expects nothing yet.
	impatient = 500 * time.Millisecond
)

// hostPort joins an address and a port as clients write them.
func hostPort[P ~int32 | ~int](addr string, port P) string {
	return net.JoinHostPort(addr, strconv.Itoa(int(port)))
}

func (s *space) eventually(f func() error) {
	s.t.Helper()
	s.eventuallyIn(patience, f)
}

func (s *space) eventuallyIn(limit time.Duration, f func() error) {
	s.t.Helper()
	if err := world.Wait(limit, f); err != nil {
		s.t.Fatal(err)
	}
}

// steadily waits until f returns nil, and then calls it four times more: of what
// is served a call may fail, too, by chance.
func (s *space) steadily(f func() error) {
	s.t.Helper()
	s.eventually(f)
	for range 4 {
		if err := f(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// answeredBy waits until exactly the pods named answer every client at addr.
func (s *space) answeredBy(proto, addr string, pods ...string) {
	s.t.Helper()
	for _, client := range s.clients() {
		s.clientAnsweredBy(client, proto, addr, pods)
	}
}

// clientAnsweredBy waits until exactly the pods named answer one client.
func (s *space) clientAnsweredBy(client *world.Probe, proto, addr string, pods []string, opts ...world.Option) {
	s.t.Helper()
	want := slices.Sorted(slices.Values(pods))
	s.eventually(func() error {
		got, err := answers(client, proto, addr, 20*len(want), opts...)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%s %s is answered by %v, want %v", proto, addr, got, want)
		}
		return err
	})
}

// answers dials count times and tells who answered; a dial that fails is an
// error.
func answers(client *world.Probe, proto, addr string, count int, opts ...world.Option) ([]string, error) {
	opts = append(opts, world.Timeout(impatient))
	// One dial first: a dead address should not cost count timeouts.
	if r := client.Dial(proto, addr, opts...); !r.OK() {
		return nil, fmt.Errorf("%s %s: %w", proto, addr, r.Err())
	}
	report, err := client.DialMany(proto, addr, count, opts...)
	if err != nil {
		return nil, err
	}
	if report.Failed > 0 {
		return nil, fmt.Errorf("%s %s: %d of %d failed: %s", proto, addr, report.Failed, report.Total, report.Failures[0])
	}
	return slices.Sorted(maps.Keys(report.Backends)), nil
}

// refused waits until every client's calls to addr fail with ECONNREFUSED.
func (s *space) refused(proto, addr string) {
	s.t.Helper()
	for _, client := range s.clients() {
		s.failsWith(client, proto, addr, syscall.ECONNREFUSED)
	}
}

// failsWith waits until a client's calls to addr fail with errno, forty of them
// one after the other: a pod that is being taken down refuses, too, and then does
// not answer, before its endpoint is gone.
func (s *space) failsWith(client *world.Probe, proto, addr string, errno syscall.Errno) {
	s.t.Helper()
	s.eventually(func() error {
		for range 40 {
			r := client.Dial(proto, addr, world.Timeout(impatient))
			if !errors.Is(r.Err(), errno) {
				return fmt.Errorf("%s %s gives %v, want %v", proto, addr, r, errno)
			}
		}
		return nil
	})
}

// fails waits until no client is answered at addr. What else the client gets
// depends on who denies the call, and kube-proxy lets it time out.
func (s *space) fails(proto, addr string, errno syscall.Errno) {
	s.t.Helper()
	for _, client := range s.clients() {
		s.steadily(func() error {
			r := client.Dial(proto, addr, world.Timeout(impatient))
			if r.OK() || r.Problem != "" {
				return fmt.Errorf("%s %s gives %v, want a failed call", proto, addr, r)
			}
			if s.portolan() && !errors.Is(r.Err(), errno) {
				return fmt.Errorf("%s %s gives %v, want %v", proto, addr, r, errno)
			}
			return nil
		})
	}
}

// load is constant requests to one address.
type load struct {
	s       *space
	hammers []*world.Hammer
}

// startLoad begins constant requests to addr. The last of them is answered
// before it returns.
func (s *space) startLoad(proto, addr string) *load {
	s.t.Helper()
	return s.startLoadFrom(s.pods, proto, addr)
}

// startLoadFrom is startLoad from other clients.
func (s *space) startLoadFrom(clients []*world.Probe, proto, addr string) *load {
	s.t.Helper()
	l := &load{s: s}
	for _, client := range clients {
		h, err := client.Hammer(proto, addr, world.HammerConfig{Workers: 2, Pause: 5 * time.Millisecond})
		s.must(err)
		l.hammers = append(l.hammers, h)
	}
	l.goesOn(10)
	return l
}

// goesOn waits until every client has made n more requests.
func (l *load) goesOn(n int) {
	l.s.t.Helper()
	for _, h := range l.hammers {
		before, err := h.Report()
		l.s.must(err)
		l.s.eventually(func() error {
			now, err := h.Report()
			if err == nil && now.Total < before.Total+n {
				err = fmt.Errorf("%d requests, want %d more than %d", now.Total, n, before.Total)
			}
			return err
		})
	}
}

// goesOnFor waits so long, with requests made until the end.
func (l *load) goesOnFor(d time.Duration) {
	l.s.t.Helper()
	began := time.Now()
	l.s.eventuallyIn(2*d, func() error {
		if took := time.Since(began); took < d {
			return fmt.Errorf("only %v have gone by", took)
		}
		return nil
	})
	l.goesOn(10)
}

// stopWithoutFailure ends the load and fails the test if any request failed.
func (l *load) stopWithoutFailure() {
	l.s.t.Helper()
	for _, h := range l.hammers {
		report, err := h.Stop()
		l.s.must(err)
		if report.Failed > 0 {
			l.s.t.Errorf("%d of %d requests failed; the first: %s", report.Failed, report.Total, report.Failures[0])
		}
		l.s.t.Logf("%d requests in %v, answered by %v", report.Total, report.Elapsed.Round(time.Millisecond), report.Backends)
	}
}
