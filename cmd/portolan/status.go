// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

func newStatus(env *environment) *cobra.Command {
	var brief bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say whether this node's Services are served, and what is wrong",
		Long:  "Say whether this node's Services are served, and what is wrong.\nExit code 1 when something is, 3 when there is neither an agent nor a table.",
		Example: `  portolan status
  portolan status --brief
  portolan status --wait 60s          # until the agent is complete and well
  portolan status -o jsonpath=.problems`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			status, err := awaitStatus(env, wait)
			if errors.Is(err, api.ErrNoAgent) {
				return statusWithoutAgent(env, brief)
			}
			if err != nil {
				return err
			}
			return printStatus(env, &status, brief)
		},
	}
	cmd.Flags().BoolVar(&brief, "brief", false, "one line")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until nothing is degraded, for this `DURATION` at most")
	return cmd
}

func awaitStatus(env *environment, wait time.Duration) (api.Status, error) {
	deadline := time.Now().Add(wait)
	for {
		status, err := env.client().Status()
		if err == nil && len(status.Degraded) == 0 || !time.Now().Before(deadline) {
			return status, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func printStatus(env *environment, s *api.Status, brief bool) error {
	done, err := env.machine(s, []string{"node/" + s.Node})
	if err != nil {
		return err
	}
	if !done && brief {
		_, err = fmt.Fprintln(env.out, briefly(s))
	} else if !done {
		err = writeStatus(env, s)
	}
	if err == nil && len(s.Degraded) > 0 {
		return errFinding
	}
	return err
}

func briefly(s *api.Status) string {
	if len(s.Degraded) == 0 {
		return "ok"
	}
	return "degraded: " + strings.Join(s.Degraded, "; ")
}

func writeStatus(env *environment, s *api.Status) error {
	summary := [][]string{
		{"Agent", "ok", fmt.Sprintf("%s up %s  node %s%s  pid %d", s.Version, env.age(s.Started), s.Node, zone(s.Zone), s.PID)},
		{"Source", sourceState(s), s.Source},
		{"Datapath", datapathState(s), fmt.Sprintf("kernel %s, %d of %d hooks attached to %s", s.Kernel, attached(s.Hooks), len(s.Hooks), s.CgroupRoot)},
		{"Services", fmt.Sprint(total(s.Services)), fmt.Sprintf("%s · backends %d (%d draining)", types(s.Services), s.Backends.Active+s.Backends.Draining, s.Backends.Draining)},
		{"Programming", fmt.Sprint(s.Programming.Changes), latency(env, &s.Programming)},
	}
	if err := env.table(nil, summary, 1); err != nil {
		return err
	}
	if err := writeDetails(env, s); err != nil {
		return err
	}
	writeRemarks(env, s)
	return nil
}

// writeDetails prints the tables of hooks, tables, and calls not let through.
func writeDetails(env *environment, s *api.Status) error {
	var hooks, devices, tables, denied [][]string
	for _, h := range s.Hooks {
		hooks = append(hooks, []string{h.Hook, h.Mode, yes(h.Attached)})
	}
	for _, d := range s.Devices {
		kind := "outward"
		if d.Pod {
			kind = "pod"
		}
		devices = append(devices, []string{d.Name, kind, cmp.Or(d.Hook, "none"), d.XDP})
	}
	for _, t := range s.Tables {
		full := 100 * uint64(t.Used) / max(1, uint64(t.Capacity))
		tables = append(tables, []string{t.Table, fmt.Sprint(t.Used), fmt.Sprint(t.Capacity), fmt.Sprintf("%d%%", full)})
	}
	for _, d := range s.Denied {
		denied = append(denied, []string{d.Reason, cmp.Or(d.Errno, "(packets)"), fmt.Sprint(d.Count)})
	}
	for _, part := range []struct {
		header []string
		rows   [][]string
		judged int
	}{
		{[]string{"HOOK", "MODE", "ATTACHED"}, hooks, 2},
		{[]string{"DEVICE", "KIND", "TC", "XDP"}, devices, -1},
		{[]string{"TABLE", "USED", "CAPACITY", "FULL"}, tables, -1},
		{[]string{"DENIED", "ERRNO", "COUNT"}, denied, -1},
	} {
		if len(part.rows) == 0 {
			continue
		}
		fmt.Fprintln(env.out)
		if err := env.table(part.header, part.rows, part.judged); err != nil {
			return err
		}
	}
	return nil
}

func writeRemarks(env *environment, s *api.Status) {
	if len(s.Missing)+len(s.IgnoredConfig)+len(s.Degraded)+len(s.Problems) > 0 {
		fmt.Fprintln(env.out)
	}
	for _, m := range s.Missing {
		fmt.Fprintln(env.out, "NOTE  this kernel has no", m)
	}
	for _, field := range s.IgnoredConfig {
		fmt.Fprintln(env.out, "NOTE  ignored:", field)
	}
	for _, d := range s.Degraded {
		fmt.Fprintln(env.out, env.paint("WARN")+" ", d)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(env.out, "%s  %s: %s\n", env.paint("WARN"), p.Object, p.Message)
	}
}

func zone(z string) string {
	if z == "" {
		return ""
	}
	return " zone " + z
}

func sourceState(s *api.Status) string {
	for _, r := range s.Resources {
		if !r.Connected {
			return "away"
		}
	}
	if !s.Synced {
		return "reading"
	}
	return "ok"
}

func datapathState(s *api.Status) string {
	if attached(s.Hooks) < len(s.Hooks) {
		return "degraded"
	}
	return "ok"
}

func attached(hooks []loader.Attachment) int {
	n := 0
	for _, h := range hooks {
		if h.Attached {
			n++
		}
	}
	return n
}

func total(counts map[string]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}

func types(counts map[string]int) string {
	var parts []string
	for kind, n := range counts {
		parts = append(parts, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

func milliseconds(seconds float64) string { return fmt.Sprintf("%.2gms", seconds*1000) }

// latency is how long changes took; nothing is measured before the first one
// after the agent has synced.
func latency(env *environment, p *api.Programming) string {
	if p.Last.IsZero() {
		return "changes, none since the agent has synced"
	}
	return fmt.Sprintf("changes, p50 %s p99 %s · last %s ago", milliseconds(p.P50), milliseconds(p.P99), env.age(p.Last))
}

// statusWithoutAgent says what the kernel goes on doing.
func statusWithoutAgent(env *environment, brief bool) error {
	set, err := env.tables()
	if err != nil {
		return err
	}
	defer set.Close()
	r, err := set.Resolve()
	if err != nil {
		return err
	}
	denied, err := set.Denied()
	if err != nil {
		return err
	}
	s := api.Status{
		Meta: api.Meta{APIVersion: api.Version, Kind: "Status"}, Hooks: loader.Attachments(env.bpffsRoot), Devices: loader.PinnedDevices(env.bpffsRoot),
		Resources: []source.ResourceStatus{}, Services: map[string]int{}, Tables: []reconcile.Usage{}, Problems: []service.Problem{},
		Backends: api.Backends{Active: r.Backends - r.Draining, Draining: r.Draining},
		Denied:   []api.Denied{},
		Degraded: append([]string{"no agent runs: traffic goes on as the tables stand, changes are not taken up"}, r.Damage...),
	}
	for _, d := range denied {
		s.Denied = append(s.Denied, api.Denied(d))
	}
	for _, h := range s.Hooks {
		if !h.Attached {
			s.Degraded = append(s.Degraded, fmt.Sprintf("hook %s is not attached: %s", h.Hook, h.Error))
		}
	}
	done, err := env.machine(&s, nil)
	if err == nil && !done {
		err = writeWithoutAgent(env, &s, len(r.Frontends), brief)
	}
	if err != nil {
		return err
	}
	return errFinding
}

func writeWithoutAgent(env *environment, s *api.Status, frontends int, brief bool) error {
	if brief {
		_, err := fmt.Fprintln(env.out, briefly(s))
		return err
	}
	err := env.table(nil, [][]string{
		{"Agent", "not running", ""},
		{"Datapath", datapathState(s), fmt.Sprintf("%d of %d hooks attached", attached(s.Hooks), len(s.Hooks))},
		{"Tables", fmt.Sprint(frontends), fmt.Sprintf("frontends · backends %d (%d draining)", s.Backends.Active+s.Backends.Draining, s.Backends.Draining)},
	}, 1)
	if err != nil {
		return err
	}
	if err := writeDetails(env, s); err != nil {
		return err
	}
	writeRemarks(env, s)
	return nil
}
