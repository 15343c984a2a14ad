// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// known is an agent's knowledge in which every metric has a value.
type known struct{}

func (known) Status() api.Status {
	return api.Status{
		Version: "v1.2.3", Synced: true, Flows: 7,
		Services: map[string]int{"ClusterIP": 3}, Backends: api.Backends{Active: 5, Draining: 1},
		Problems: []service.Problem{{Object: "Service a/b", Reason: service.ReasonConflict}},
		Denied:   []api.Denied{{Reason: "no-endpoint", Count: 4}},
		Tables:   []reconcile.Usage{{Table: "slots", Used: 1, Capacity: 8}},
		Hooks:    []loader.Attachment{{Hook: "cgroup/connect4", Mode: "link", Attached: true}},
		Devices: []loader.DeviceStatus{{Name: "eth0", Hook: "tcx", XDP: "native"}, {Name: "eth1", XDP: "none", Problem: "no tc"},
			{Name: "eth2", Hook: "tcx", XDP: "none", Problem: "no XDP"}, {Name: "eth3", Hook: "clsact", XDP: "generic", Lost: []string{"tc", "xdp"}}},
		Resources: []source.ResourceStatus{{Resource: "services", Connected: true}},
	}
}

func (known) Served() Served {
	return Served{
		Frontends: map[Frontends]int{{service.IPv4, "NodePort"}: 2},
		NoLocal:   map[NoLocal]int{{service.IPv6, "external"}: 1},
	}
}

func (known) Answers() map[health.Answers]uint64 {
	return map[health.Answers]uint64{{Question: health.Health, Code: 503}: 2, {Question: health.Live, Code: 200}: 9, {Question: health.Ready, Code: 200}: 1}
}

// recorded is a recorder in which every metric has a value.
func recorded() *Recorder {
	r := NewRecorder()
	at := time.Unix(1_000_000, 0)
	r.Queued(3, 4, at)
	r.Queued(1, 2, at)
	r.Synced(families, 1500*time.Microsecond, true)
	r.Queued(0, 5, at)
	r.Synced(families[:1], 3*time.Millisecond, false)
	r.UpToDate(at)
	r.Queued(1, 0, at)
	r.Programmed(2 * time.Millisecond)
	r.NetworkProgrammed(service.IPv4, 700*time.Millisecond)
	r.Swept(time.Millisecond, 6)
	r.Increment(context.Background(), "200", "GET", "api:6443")
	r.Observe(context.Background(), "GET", url.URL{Host: "api:6443"}, 20*time.Millisecond)
	return r
}

func scrape(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(known{}, recorded()).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("answer %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestAScrapeSaysWhatIsKnown(t *testing.T) {
	t.Parallel()
	lines := strings.Split(scrape(t), "\n")
	for _, want := range []string{
		`portolan_synced 1`,
		`portolan_flows 7`,
		`portolan_frontends{family="IPv4",kind="NodePort"} 2`,
		`portolan_backends{state="active"} 5`,
		`portolan_rejected_objects{reason="frontend-conflict"} 1`,
		`portolan_denied_calls_total{reason="no-endpoint"} 4`,
		`portolan_attachment_up{device="",hook="cgroup/connect4",mode="link"} 1`,
		`portolan_attachment_up{device="eth0",hook="tc",mode="tcx"} 1`,
		`portolan_attachment_up{device="eth0",hook="xdp",mode="native"} 1`,
		`portolan_attachment_up{device="eth1",hook="tc",mode=""} 0`,
		`portolan_attachment_up{device="eth2",hook="tc",mode="tcx"} 1`,
		`portolan_attachment_up{device="eth3",hook="tc",mode="clsact"} 0`,
		`portolan_attachment_up{device="eth3",hook="xdp",mode="generic"} 0`,
		`portolan_network_programming_seconds_bucket{le="0.0032"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 1`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1e+06`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 1e+06`,
		`kubeproxy_sync_proxy_rules_service_changes_total 5`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 1`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 11`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0`,
		`kubeproxy_proxy_healthz_total{code="503"} 2`,
		`kubeproxy_proxy_livez_total{code="200"} 9`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 6`,
		`rest_client_requests_total{code="200",host="api:6443",method="GET"} 1`,
		`rest_client_request_duration_seconds_bucket{host="api:6443",verb="GET",le="0.025"} 1`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the scrape does not say %s", want)
		}
	}
}

func TestTheNetworkProgrammingBucketsAreKubeProxys(t *testing.T) {
	t.Parallel()
	b := programmingBuckets()
	if len(b) != 80 || b[0] != 0.25 || b[1] != 0.5 || b[2] != 1 || b[60] != 59 || b[61] != 60 || b[72] != 115 || b[73] != 120 || b[79] != 300 {
		t.Errorf("%d buckets: %v", len(b), b)
	}
}

// notOurs are names that are kept although they break the conventions: what is
// made for kube-proxy asks for them.
var notOurs = []string{"kubeproxy_sync_proxy_rules_no_local_endpoints_total"}

func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	problems, err := promlint.New(strings.NewReader(scrape(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !slices.Contains(notOurs, p.Metric) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// declared are the names of all metrics but the process's own.
func declared(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	descs := make(chan *prometheus.Desc, 1000)
	for _, c := range append(NewRecorder().all, collector{known{}}) {
		c.Describe(descs)
	}
	close(descs)
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		names[name.FindStringSubmatch(d.String())[1]] = true
	}
	return names
}

func TestTheDocumentListsEveryMetricAndNoOther(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)").FindAllStringSubmatch(string(text), -1) {
		listed[m[1]] = true
	}
	have := declared(t)
	for name := range have {
		if !listed[name] {
			t.Errorf("docs/metrics.md does not list %s", name)
		}
	}
	for name := range listed {
		if !have[name] {
			t.Errorf("docs/metrics.md lists %s, which there is not", name)
		}
	}
	scraped := scrape(t)
	for name := range have {
		if !strings.Contains(scraped, fmt.Sprintf("# TYPE %s ", name)) {
			t.Errorf("%s was not scraped", name)
		}
	}
}
