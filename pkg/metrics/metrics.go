// SPDX-License-Identifier: Apache-2.0

// Package metrics shows the agent's status as Prometheus metrics. Everything is
// read when it is asked for: keeping count costs the agent nothing.
//
// It imports pkg/api for the status and nothing else of ours.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"portolan.dev/portolan/pkg/api"
)

// Provider is who knows the status.
type Provider interface {
	Status() api.Status
}

// Handler serves the metrics of a provider, and of the process, from a registry
// of its own.
func Handler(p Provider) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{p}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

type collector struct{ provider Provider }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("portolan_"+name, help, labels, nil)
}

var (
	buildInfo   = desc("build_info", "Always 1; the labels say what runs.", "version")
	synced      = desc("synced", "1 once everything has been seen and written.")
	services    = desc("services", "Services known, by type.", "type")
	backends    = desc("backends", "Backends in the tables, by state.", "state")
	rejected    = desc("rejected_objects", "Objects or parts of objects that are not served as written, by reason.", "reason")
	denied      = desc("denied_calls_total", "Socket calls that were not let through, by reason.", "reason")
	entries     = desc("map_entries", "Entries in use of a table, quarantine included.", "map")
	capacity    = desc("map_capacity", "Entries a table has room for.", "map")
	resizes     = desc("map_resizes_total", "Times a table was grown.", "map")
	attached    = desc("attachment_up", "1 while a program is attached to the hook.", "hook")
	watchUp     = desc("api_watch_up", "1 while the objects of a resource are followed.", "resource")
	programming = desc("network_programming_seconds", "Time from a change seen to the tables written, of the last 512 changes.", "quantile")
	changes     = desc("service_port_changes_total", "Service ports written because something changed.")
)

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfo, synced, services, backends, rejected, denied, entries, capacity, resizes, attached, watchUp, programming, changes} {
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
	gauge(buildInfo, 1, s.Version)
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
		gauge(attached, truth(h.Attached), h.Hook)
	}
	for _, r := range s.Resources {
		gauge(watchUp, truth(r.Connected), r.Resource)
	}
	gauge(programming, s.Programming.P50, "0.5")
	gauge(programming, s.Programming.P99, "0.99")
	counter(changes, float64(s.Programming.Changes))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
