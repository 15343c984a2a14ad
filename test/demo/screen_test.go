// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"portolan.dev/portolan/test/world"
)

func TestBarsAreAsLongAsTheirShare(t *testing.T) {
	t.Parallel()
	s := &screen{}
	report := world.Report{Total: 300, Backends: map[string]int{"web-1": 150, "web-2": 90, "web-3": 60}}
	want := "web-1 █████  150  web-2 ███     90  web-3 ██      60"
	if got := s.bars(report); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	eighths := world.Report{Total: 80, Backends: map[string]int{"a": 1, "b": 7, "c": 72}}
	if got := s.bars(eighths); !strings.Contains(got, "a ▏ ") || !strings.Contains(got, "b ▉ ") {
		t.Errorf("%s: want one eighth for 1 and seven for 7 of 80", got)
	}
}

func TestFailuresStandBesideTheBars(t *testing.T) {
	t.Parallel()
	s := &screen{}
	got := s.bars(world.Report{Total: 2, Failed: 2, Failures: []world.Failure{{Problem: "no route"}, {}}})
	if !strings.Contains(got, "2 failed") || !strings.Contains(got, "no route") {
		t.Errorf("%q does not tell of the failures", got)
	}
}

func TestEveryLineFitsAHundredColumns(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &screen{out: &out}
	three := world.Report{Total: 300, Backends: map[string]int{"web-1": 120, "web-2": 100, "web-3": 80}}
	four := world.Report{Total: 5000, Backends: map[string]int{"web-1": 2000, "web-2": 1000, "web-3": 1000, "web-4": 1000}}
	s.claim(true, "store", "LoadBalancer", "%-25s%s", "http 192.168.100.1:30080", s.bars(three))
	s.claim(true, "scale up", "0 failed", "%s", s.bars(four))
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestClaimsThatDoNotHoldAreRemembered(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := &screen{out: &out}
	s.claim(true, "web", "ClusterIP", "fine")
	s.claim(false, "dns", "two ports", "%d of %d", 3, 4)
	if s.claims != 2 || len(s.broken) != 1 || s.broken[0] != "dns two ports: 3 of 4" {
		t.Errorf("%d claims, broken %q, want the second of two", s.claims, s.broken)
	}
	if !strings.Contains(out.String(), "✓ web") || !strings.Contains(out.String(), "✗ dns") {
		t.Errorf("the marks are missing:\n%s", out.String())
	}
}

func TestFairMeansAllBackendsAndNoOther(t *testing.T) {
	t.Parallel()
	both := []string{"a", "b"}
	for name, c := range map[string]struct {
		report world.Report
		want   bool
	}{
		"even":       {world.Report{Total: 100, Backends: map[string]int{"a": 50, "b": 50}}, true},
		"uneven":     {world.Report{Total: 100, Backends: map[string]int{"a": 90, "b": 10}}, false},
		"one absent": {world.Report{Total: 100, Backends: map[string]int{"a": 100}}, false},
		"a stranger": {world.Report{Total: 100, Backends: map[string]int{"a": 40, "b": 40, "c": 20}}, false},
		"a failure":  {world.Report{Total: 100, Failed: 1, Backends: map[string]int{"a": 50, "b": 49}}, false},
	} {
		if got := fair(c.report, both); got != c.want {
			t.Errorf("%s: fair is %v, want %v", name, got, c.want)
		}
	}
}

func TestColumnsAreCutOutOfATable(t *testing.T) {
	t.Parallel()
	table := "NAMESPACE   NAME   AGE   IP\n" +
		"default     web    3d    10.0.0.1,10.0.0.2\n" +
		"kube        dns    1h    <none>\n"
	want := "NAME   IP\nweb    10.0.0.1,10.0.0.2\ndns    <none>\n"
	if got := without(table, "NAMESPACE", "AGE", "SELECTOR"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	last := "NAME   IP\nweb    10.0.0.1\n"
	if got := without(last, "IP"); got != "NAME\nweb\n" {
		t.Errorf("last column: got %q", got)
	}
}
