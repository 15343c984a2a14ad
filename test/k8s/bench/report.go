// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"
)

// The figures to reach with 10,000 Services of 10 endpoints.
const (
	barP50   = 8.0   // ms
	barP99   = 40.0  // ms
	barStart = 1.5   // s
	barPeak  = 200.0 // MB
)

// figure is one line of the report, in the format that all benchmarks share.
type figure struct {
	Name          string   `json:"name"`
	Value         float64  `json:"value"`
	Unit          string   `json:"unit"`
	Baseline      string   `json:"baseline"`
	BaselineValue *float64 `json:"baseline_value"` // null when it was not measured
	Bar           float64  `json:"bar"`
	Pass          bool     `json:"pass"`
}

// report prints a table for people and adds the figures to the JSON file.
func report(w io.Writer, c config, ours, peer *figures) error {
	with := fmt.Sprintf("%d Services x %d endpoints", c.services, c.endpoints)
	lines := []struct {
		name, unit string
		bar        float64
		value      func(*figures) float64
	}{
		{"API object changed to connect, p50, " + with, "ms", barP50, func(f *figures) float64 { return ms(percentile(f.flips, 50)) }},
		{"API object changed to connect, p99, " + with, "ms", barP99, func(f *figures) float64 { return ms(percentile(f.flips, 99)) }},
		{"agent start to last Service, " + with, "s", barStart, func(f *figures) float64 { return ms(percentile(f.starts, 50)) / 1000 }},
		{"agent peak memory, " + with, "MB", barPeak, func(f *figures) float64 { return float64(f.peak) / 1e6 }},
		{"UDP ping-pong through a NodePort against a routed pod", "ratio", 0, func(f *figures) float64 { return f.udp.Ratio }},
		{"TCP connect, request, close through a NodePort against a routed pod", "ratio", 0, func(f *figures) float64 { return f.tcp.Ratio }},
	}
	var out []figure
	for _, l := range lines {
		fig := figure{Name: l.name, Value: l.value(ours), Unit: l.unit, Bar: l.bar}
		fig.Pass = fig.Bar == 0 || fig.Value <= fig.Bar
		if peer != nil {
			v := l.value(peer)
			fig.Baseline, fig.BaselineValue = "kube-proxy v1.36.3, nftables", &v
		}
		out = append(out, fig)
	}
	printTable(w, out)
	fmt.Fprintf(w, "\nof each change the API server's own answer took p50 %.1f ms, p99 %.1f ms; n = %d",
		ms(percentile(ours.writes, 50)), ms(percentile(ours.writes, 99)), len(ours.flips))
	if peer != nil {
		fmt.Fprintf(w, " (kube-proxy: n = %d)", len(peer.flips))
	}
	fmt.Fprintln(w)
	if c.json == "" {
		return nil
	}
	return addTo(c.json, out)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func printTable(w io.Writer, figures []figure) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer tw.Flush()
	fmt.Fprintln(tw, "WHAT\tPORTOLAN\tPEER\tTO REACH\t")
	for _, f := range figures {
		peer, verdict := "-", "reached"
		if f.BaselineValue != nil {
			peer = fmt.Sprintf("%.4g %s", *f.BaselineValue, f.Unit)
		}
		if !f.Pass {
			verdict = "NOT reached"
		}
		bar := fmt.Sprintf("<= %g %s", f.Bar, f.Unit)
		if f.Bar == 0 {
			bar, verdict = "-", ""
		}
		fmt.Fprintf(tw, "%s\t%.4g %s\t%s\t%s\t%s\n", f.Name, f.Value, f.Unit, peer, bar, verdict)
	}
}

// addTo appends figures to the JSON array in the file, which need not exist.
func addTo(path string, figures []figure) error {
	var all []json.RawMessage
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("add figures: %w", err)
	default:
		if err := json.Unmarshal(old, &all); err != nil {
			return fmt.Errorf("add figures to %s: %w; delete the file if it is none of a benchmark's", path, err)
		}
	}
	for _, f := range figures {
		text, err := json.Marshal(f)
		if err != nil {
			return fmt.Errorf("add figures: %w", err)
		}
		all = append(all, text)
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("add figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("add figures: %w", err)
	}
	return nil
}
