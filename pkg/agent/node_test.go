// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/config"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/source"
)

// An agent that knows no address of its node would remove what an earlier one
// wrote for them.
func TestNoUpdateIsTakenBeforeTheNodeIsKnown(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	var reads atomic.Int32
	a := &Agent{log: log, problems: newProblems(log, newTeller(nil, log)), nodeChanged: make(chan struct{}, 1)}
	a.read = func() (node.Facts, []node.Link, error) {
		if reads.Add(1) < 3 {
			return node.Facts{}, nil, errors.New("results may be incomplete")
		}
		return node.Facts{}, nil, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	updates, ended := make(chan source.Update), make(chan error, 1)
	go func() { ended <- a.loop(ctx, updates, nil) }()
	select {
	case updates <- source.Update{}:
	case <-time.After(10 * time.Second):
		t.Error("no update is taken at all")
	}
	if n := reads.Load(); n != 3 {
		t.Errorf("an update is taken after %d looks at the node, want 3", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestANodeThatCannotBeReadIsNamedAndHoldsUpNoFailure(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	a := &Agent{log: log, problems: newProblems(log, newTeller(nil, log))}
	a.read = func() (node.Facts, []node.Link, error) {
		return node.Facts{}, nil, errors.New("results may be incomplete")
	}
	failed := make(chan error, 1)
	failed <- errors.New("api: address in use")
	if err := a.loop(t.Context(), nil, failed); err == nil || !strings.Contains(err.Error(), "address in use") {
		t.Errorf("loop ended with %v", err)
	}
	if list := a.problems.all(); len(list) != 1 || !strings.Contains(list[0].Message, "results may be incomplete") {
		t.Errorf("problems are %v", list)
	}
}

func TestCIDRsThatFindNoPlaceAreNamed(t *testing.T) {
	t.Parallel()
	var nine []netip.Prefix
	for i := range byte(9) {
		nine = append(nine, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, i, 0, 0}), 16))
	}
	for name, c := range map[string]struct {
		options config.Config
		want    []string // objects
	}{
		"eight of each":                  {config.Config{InsideCIDRs: nine[:8], CIDRs: nine[:8]}, nil},
		"nine --service-cidr":            {config.Config{CIDRs: nine}, []string{"service CIDRs"}},
		"nine --cluster-cidr":            {config.Config{InsideCIDRs: nine}, []string{"--cluster-cidr"}},
		"nine, for some of the Services": {config.Config{InsideCIDRs: nine, CIDRs: nine, ServiceProxyName: "ours"}, []string{"--cluster-cidr"}},
		"one that repeats":               {config.Config{InsideCIDRs: append(nine[:8:8], nine[0])}, nil},
	} {
		log := slog.New(slog.DiscardHandler)
		a := &Agent{log: log, problems: newProblems(log, newTeller(nil, log)), cfg: Config{Options: c.options}}
		a.nodeTables()
		var got []string
		for _, p := range a.problems.all() {
			got = append(got, p.Object)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: problems are of %q, want %q", name, got, c.want)
		}
	}
}

func TestSocketsThatMayNotBeClosedAreToldOnce(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	a := &Agent{log: slog.New(slog.NewTextHandler(&out, nil))}
	denied := fmt.Errorf("enter network namespace: %w", unix.EPERM)
	a.tellUnclosed("/run/netns/a", errors.New("list UDP sockets: interrupted"))
	if out.Len() > 0 {
		t.Errorf("what comes and goes is told: %s", &out)
	}
	a.tellUnclosed("/run/netns/a", denied)
	a.tellUnclosed("/run/netns/b", denied)
	if text := out.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "CAP_SYS_ADMIN") || !strings.Contains(text, "--netns-dir") {
		t.Errorf("the log says %s", text)
	}
}
