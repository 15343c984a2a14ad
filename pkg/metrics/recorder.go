// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"portolan.dev/portolan/pkg/service"
)

// Recorder takes note of what happens and cannot be read afterwards: how long
// things took. Names, labels and buckets that begin with kubeproxy_ and
// rest_client_ are kube-proxy's, so that dashboards and alerts made for it go
// on working. Its methods may be called by any goroutine.
type Recorder struct {
	all []prometheus.Collector

	sync, fullSync, partialSync *prometheus.HistogramVec // by family
	networkProgramming          *prometheus.HistogramVec // by family
	programming                 prometheus.Histogram
	synced, queued              *prometheus.GaugeVec // by family
	pending                     [2]prometheus.Gauge  // services, slices
	changes                     [2]prometheus.Counter
	sweep                       *prometheus.HistogramVec
	swept                       *prometheus.CounterVec
	requests                    *prometheus.CounterVec
	requestTime                 *prometheus.HistogramVec
}

const family = "ip_family"

var families = []service.Family{service.IPv4, service.IPv6}

// NewRecorder returns a Recorder that has seen nothing.
func NewRecorder() *Recorder {
	r := &Recorder{}
	fine := prometheus.ExponentialBuckets(0.001, 2, 15)
	r.sync = r.histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Time that a batch of changes took to get into the tables.", fine, family)
	r.fullSync = r.histogram("kubeproxy_sync_full_proxy_rules_duration_seconds", "Time that the first batch, everything, took to get into the tables.", fine, family)
	r.partialSync = r.histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Time that a batch of changes after the first took to get into the tables.", fine, family)
	r.networkProgramming = r.histogram("kubeproxy_network_programming_duration_seconds", "Time from a change of endpoints in the cluster, as their slice says, to the tables.", programmingBuckets(), family)
	r.programming = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "portolan_network_programming_seconds",
		Help: "Time from a change seen by the agent to the tables.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18)})
	r.synced = r.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When changes last got into the tables.", family)
	r.queued = r.gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a batch of changes last began to wait for the tables.", family)
	for i, kind := range []string{"service", "endpoint"} {
		r.pending[i] = prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_" + kind + "_changes_pending",
			Help: "Changed " + kind + " objects that wait for the tables."})
		r.changes[i] = prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_" + kind + "_changes_total",
			Help: "Changes of " + kind + " objects that were taken up."})
		r.all = append(r.all, r.pending[i], r.changes[i])
	}
	r.sweep = r.histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Time that a sweep of idle flows took.", fine, family)
	r.swept = r.counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "Entries of idle flows that sweeps removed.", family)
	r.requests = r.counter("rest_client_requests_total", "Requests to the API server, by status code, method and host.", "code", "method", "host")
	r.requestTime = r.histogram("rest_client_request_duration_seconds", "Time that requests to the API server took, by verb and host.",
		[]float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}, "verb", "host")
	r.all = append(r.all, r.programming)
	for _, f := range families {
		// Known from the beginning: a rate needs a first value.
		r.sync.WithLabelValues(f.String())
		r.networkProgramming.WithLabelValues(f.String())
	}
	return r
}

// programmingBuckets are kube-proxy's: quarters of a second to 0.5, seconds to
// 60, five seconds to 120, half minutes to 300.
func programmingBuckets() []float64 {
	return slices.Concat(prometheus.LinearBuckets(0.25, 0.25, 2), prometheus.LinearBuckets(1, 1, 59),
		prometheus.LinearBuckets(60, 5, 12), prometheus.LinearBuckets(120, 30, 7))
}

func (r *Recorder) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	r.all = append(r.all, v)
	return v
}

func (r *Recorder) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	r.all = append(r.all, v)
	return v
}

func (r *Recorder) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.all = append(r.all, v)
	return v
}

// Queued notes that a batch of changed objects waits.
func (r *Recorder) Queued(services, slices int, now time.Time) {
	r.pending[0].Set(float64(services))
	r.pending[1].Set(float64(slices))
	r.changes[0].Add(float64(services))
	r.changes[1].Add(float64(slices))
	for _, f := range families {
		r.queued.WithLabelValues(f.String()).Set(seconds(now))
	}
}

// Synced notes that a batch has got into the tables of some families, in how
// much time; full: it was everything there is.
func (r *Recorder) Synced(in []service.Family, took time.Duration, full bool) {
	r.pending[0].Set(0)
	r.pending[1].Set(0)
	part := r.partialSync
	if full {
		part = r.fullSync
	}
	for _, f := range in {
		label := f.String()
		r.sync.WithLabelValues(label).Observe(took.Seconds())
		part.WithLabelValues(label).Observe(took.Seconds())
	}
}

// UpToDate notes that no batch waits: what had to change of either family is in
// the tables.
func (r *Recorder) UpToDate(now time.Time) {
	for _, f := range families {
		r.synced.WithLabelValues(f.String()).Set(seconds(now))
	}
}

// Programmed notes how long a change took from when the agent saw it.
func (r *Recorder) Programmed(took time.Duration) { r.programming.Observe(took.Seconds()) }

// NetworkProgrammed notes how long a change of endpoints took from when it
// happened in the cluster.
func (r *Recorder) NetworkProgrammed(f service.Family, took time.Duration) {
	r.networkProgramming.WithLabelValues(f.String()).Observe(took.Seconds())
}

// Swept notes a sweep of idle flows. The kernel does both families in one go:
// what it removed is counted with IPv4.
func (r *Recorder) Swept(took time.Duration, removed uint32) {
	r.sweep.WithLabelValues(service.IPv4.String()).Observe(took.Seconds())
	r.swept.WithLabelValues(service.IPv4.String()).Add(float64(removed))
}

// Increment notes the answer to a request to the API server: client-go's
// ResultMetric.
func (r *Recorder) Increment(_ context.Context, code, method, host string) {
	r.requests.WithLabelValues(code, method, host).Inc()
}

// Observe notes how long a request to the API server took: client-go's
// LatencyMetric.
func (r *Recorder) Observe(_ context.Context, verb string, u url.URL, took time.Duration) {
	r.requestTime.WithLabelValues(verb, u.Host).Observe(took.Seconds())
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
