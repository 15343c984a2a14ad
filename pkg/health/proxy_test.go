// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
)

func TestAnswersAboutTheProxyAreTrue(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	past := now.Add(-time.Hour)
	hook6 := []Fault{{Family: service.IPv6, Reason: "hook cgroup/connect6 is not attached"}}
	for name, c := range map[string]struct {
		state              State
		live, ready, serve int
		v4, v6             bool
	}{
		"has just begun":                {State{}, 200, 503, 503, true, true},
		"has adopted tables":            {State{Adopted: true}, 200, 503, 200, true, true},
		"works":                         {State{Updated: past}, 200, 200, 200, true, true},
		"a change waits":                {State{Updated: past, Queued: now.Add(-59 * time.Second)}, 200, 200, 200, true, true},
		"a change waits for too long":   {State{Updated: past, Queued: now.Add(-60 * time.Second)}, 503, 503, 503, false, false},
		"the first one does":            {State{Queued: past}, 503, 503, 503, false, false},
		"the node is to be deleted":     {State{Updated: past, Ineligible: "the node is being deleted"}, 200, 200, 503, true, true},
		"IPv6 is not translated":        {State{Updated: past, Faults: hook6}, 503, 503, 503, true, false},
		"nothing is translated":         {State{Updated: past, Faults: []Fault{{Reason: "gone"}}}, 503, 503, 503, false, false},
		"nothing is, of adopted tables": {State{Adopted: true, Faults: []Fault{{Reason: "gone"}}}, 503, 503, 503, false, false},
	} {
		for q, want := range map[Question]int{Live: c.live, Ready: c.ready, Health: c.serve} {
			r := c.state.Answer(q, now)
			if r.Code() != want {
				t.Errorf("%s: %s answers %d, want %d: %v", name, q, r.Code(), want, r.Reasons)
			}
			if (r.Code() == 200) != (len(r.Reasons) == 0) {
				t.Errorf("%s: %s answers %d with reasons %q", name, q, r.Code(), r.Reasons)
			}
			if r.CurrentTime != now || (r.Code() == 200) != (r.LastUpdated == now) {
				t.Errorf("%s: %s answers %d with lastUpdated %v, currentTime %v", name, q, r.Code(), r.LastUpdated, r.CurrentTime)
			}
			if (r.NodeEligible != nil) != (q == Health) || q == Health && *r.NodeEligible != (c.state.Ineligible == "") {
				t.Errorf("%s: %s: nodeEligible is wrong", name, q)
			}
		}
		r := c.state.Answer(Live, now)
		if r.Status["IPv4"].Healthy != c.v4 || r.Status["IPv6"].Healthy != c.v6 {
			t.Errorf("%s: status is %v", name, r.Status)
		}
	}
}

func TestAProxyIsStaleOnlyWhileAChangeWaits(t *testing.T) {
	t.Parallel()
	start := time.Now()
	after := func(d time.Duration) time.Time { return start.Add(d) }
	p := NewProxy(false)
	healthy := func(d time.Duration, want bool) {
		t.Helper()
		if r := p.Answer(Live, after(d)); r.Healthy != want {
			t.Errorf("after %v: healthy %v, want %v: %v", d, r.Healthy, want, r.Reasons)
		}
	}
	p.Queue(start) // objects come in, but not all kinds have been listed
	healthy(time.Hour, true)
	p.Begin(after(time.Hour))
	p.Update(after(time.Hour + time.Second))
	healthy(24*time.Hour, true)
	p.Queue(after(24 * time.Hour))
	p.Begin(after(24*time.Hour + 30*time.Second)) // tried, and failed
	healthy(24*time.Hour+59*time.Second, true)
	healthy(24*time.Hour+61*time.Second, false)
	p.Update(after(24*time.Hour + 62*time.Second))
	healthy(24*time.Hour+63*time.Second, true)
}

func TestProbesReadKubeProxysJSON(t *testing.T) {
	t.Parallel()
	p := NewProxy(false)
	server := httptest.NewServer(p.Handler())
	defer server.Close()
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if r.StatusCode != 404 && (r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("%s: headers are %v", path, r.Header)
		}
		return r.StatusCode, string(body)
	}
	p.Begin(time.Now())
	p.Update(time.Now())
	code, body := get("/healthz")
	// In the order in which kube-proxy writes them, and nothing else when well.
	at := -1
	for _, key := range []string{`{"lastUpdated":"`, `"currentTime":"`, `"nodeEligible":true`, `"healthy":true`, `"status":{"IPv4":{"lastUpdated":"`, `"IPv6":{"lastUpdated":"`} {
		next := strings.Index(body, key)
		if code != 200 || next <= at {
			t.Errorf("/healthz answers %d, %s: %s is missing or misplaced", code, body, key)
		}
		at = next
	}
	if strings.Contains(body, "reasons") {
		t.Errorf("/healthz has reasons although it is well: %s", body)
	}
	if code, body = get("/livez"); code != 200 || strings.Contains(body, "nodeEligible") {
		t.Errorf("/livez answers %d, %s", code, body)
	}
	p.SetNode("the node has the taint ToBeDeletedByClusterAutoscaler")
	var r Report
	code, body = get("/healthz")
	if err := json.Unmarshal([]byte(body), &r); err != nil || code != 503 || !r.Healthy || *r.NodeEligible || !slices.Contains(r.Reasons, "the node has the taint ToBeDeletedByClusterAutoscaler") {
		t.Errorf("/healthz of a node to be deleted answers %d, %s (%v)", code, body, err)
	}
	if code, _ = get("/livez"); code != 200 || !p.Healthy() {
		t.Error("/livez or service health checks mind that the node is to be deleted")
	}
	p.SetFaults([]Fault{{Family: service.IPv4, Reason: "hook cgroup/connect4: no link is pinned"}})
	if code, body = get("/readyz"); code != 503 || !strings.Contains(body, `"reasons":["hook cgroup/connect4: no link is pinned"]`) || p.Healthy() {
		t.Errorf("/readyz of a broken dataplane answers %d, %s", code, body)
	}
	if code, _ = get("/other"); code != 404 {
		t.Errorf("/other answers %d", code)
	}
	counts := p.Counts()
	for a, want := range map[Answers]uint64{{Health, 200}: 1, {Health, 503}: 1, {Live, 200}: 2, {Ready, 503}: 1} {
		if counts[a] != want {
			t.Errorf("%v was counted %d times, want %d", a, counts[a], want)
		}
	}
}
