// SPDX-License-Identifier: Apache-2.0

// Package metrics shows the agent's status as Prometheus metrics. Whatever can
// be is read when it is asked for, and keeping count of it costs the agent
// nothing; times are noted by a Recorder.
//
// It imports pkg/api, pkg/health and pkg/service for what they tell, and
// nothing else of ours. docs/metrics.md lists every metric, and a test compares
// the two.
package metrics

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/service"
)

// Provider is who knows the status.
type Provider interface {
	Status() api.Status
	// Served tells what is served by the compiled tables.
	Served() Served
	// Answers counts what probes were told.
	Answers() map[health.Answers]uint64
}

// Served counts what the compiled tables have.
type Served struct {
	Frontends map[Frontends]int
	// NoLocal counts service ports that have endpoints, but none on this node
	// for traffic that a policy Local keeps here.
	NoLocal map[NoLocal]int
}

// Frontends names frontends of a kind.
type Frontends struct {
	Family service.Family
	Kind   string
}

// NoLocal names a traffic policy, "internal" or "external".
type NoLocal struct {
	Family service.Family
	Policy string
}

// Handler serves what a provider knows and a recorder has noted, and metrics
// of the process, from a registry of its own.
func Handler(p Provider, r *Recorder) http.Handler {
	return promhttp.HandlerFor(newRegistry(p, r), promhttp.HandlerOpts{})
}

func newRegistry(p Provider, r *Recorder) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{p}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(r.all...)
	return registry
}

type collector struct{ provider Provider }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	buildInfo = desc("portolan_build_info", "Always 1; the labels say what runs.", "version", "goversion")
	synced    = desc("portolan_synced", "1 once everything has been seen and written.")
	services  = desc("portolan_services", "Services known, by type.", "type")
	backends  = desc("portolan_backends", "Backends in the tables, by state.", "state")
	rejected  = desc("portolan_rejected_objects", "Objects or parts of objects that are not served as written, by reason.", "reason")
	denied    = desc("portolan_denied_calls_total", "Socket calls that were not let through, by reason.", "reason")
	entries   = desc("portolan_map_entries", "Entries in use of a table, quarantine included.", "map")
	capacity  = desc("portolan_map_capacity", "Entries a table has room for.", "map")
	resizes   = desc("portolan_map_resizes_total", "Times a table was grown.", "map")
	attached  = desc("portolan_attachment_up", "1 while a program is attached to the hook.", "hook", "device", "mode")
	watchUp   = desc("portolan_api_watch_up", "1 while the objects of a resource are followed.", "resource")
	changes   = desc("portolan_service_port_changes_total", "Service ports written because something changed.")
	flows     = desc("portolan_flows", "Established flows from the wire, at the last sweep.")
	frontends = desc("portolan_frontends", "Addresses and ports that are served, by kind.", "family", "kind")
	noLocal   = desc("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports with a policy Local and endpoints on other nodes only.", "traffic_policy", "ip_family")
	healthz   = desc("kubeproxy_proxy_healthz_total", "Answers to /healthz, by status code.", "code")
	livez     = desc("kubeproxy_proxy_livez_total", "Answers to /livez, by status code.", "code")
)

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfo, synced, services, backends, rejected, denied, entries, capacity, resizes, attached, watchUp, changes,
		flows, frontends, noLocal, healthz, livez} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.provider.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(buildInfo, 1, s.Version, runtime.Version())
	gauge(synced, truth(s.Synced))
	for kind, n := range s.Services {
		gauge(services, float64(n), kind)
	}
	gauge(backends, float64(s.Backends.Active), "active")
	gauge(backends, float64(s.Backends.Draining), "draining")
	byReason := map[string]int{}
	for _, p := range s.Problems {
		byReason[p.Reason]++
	}
	for reason, n := range byReason {
		gauge(rejected, float64(n), reason)
	}
	for _, d := range s.Denied {
		counter(denied, float64(d.Count), d.Reason)
	}
	for _, t := range s.Tables {
		gauge(entries, float64(t.Used), t.Table)
		gauge(capacity, float64(t.Capacity), t.Table)
		counter(resizes, float64(t.Resizes), t.Table)
	}
	for _, h := range s.Hooks {
		gauge(attached, truth(h.Attached), h.Hook, "", h.Mode)
	}
	for _, d := range s.Devices {
		gauge(attached, truth(d.Hook != "" && !slices.Contains(d.Lost, "tc")), "tc", d.Name, d.Hook)
		if d.XDP != "none" {
			gauge(attached, truth(!slices.Contains(d.Lost, "xdp")), "xdp", d.Name, d.XDP)
		}
	}
	for _, r := range s.Resources {
		gauge(watchUp, truth(r.Connected), r.Resource)
	}
	counter(changes, float64(s.Programming.Changes))
	gauge(flows, float64(s.Flows))
	c.collectServed(gauge)
	for a, n := range c.provider.Answers() {
		switch a.Question {
		case health.Health:
			counter(healthz, float64(n), strconv.Itoa(a.Code))
		case health.Live:
			counter(livez, float64(n), strconv.Itoa(a.Code))
		}
	}
}

func (c collector) collectServed(gauge func(*prometheus.Desc, float64, ...string)) {
	served := c.provider.Served()
	for f, n := range served.Frontends {
		gauge(frontends, float64(n), f.Family.String(), f.Kind)
	}
	for _, f := range families {
		for _, policy := range []string{"internal", "external"} {
			gauge(noLocal, float64(served.NoLocal[NoLocal{f, policy}]), policy, f.String())
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
