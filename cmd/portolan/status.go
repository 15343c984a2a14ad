// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/api"
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
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait until nothing is degraded, this `LONG` at most")
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
	done, err := env.machine(s)
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
	w := tabwriter.NewWriter(env.out, 0, 8, 3, ' ', 0)
	line := func(name, state, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\t%s\n", name, state, fmt.Sprintf(format, args...))
	}
	line("Agent", "ok", "%s up %s  node %s%s  pid %d", s.Version, age(s.Started), s.Node, zone(s.Zone), s.PID)
	line("Source", sourceState(s), "%s", s.Source)
	line("Datapath", datapathState(s), "kernel %s, %d of %d hooks attached to %s", s.Kernel, attached(s.Hooks), len(s.Hooks), s.CgroupRoot)
	line("Services", fmt.Sprint(total(s.Services)), "%s · backends %d (%d draining)", types(s.Services), s.Backends.Active+s.Backends.Draining, s.Backends.Draining)
	line("Programming", fmt.Sprint(s.Programming.Changes), "changes, p50 %s p99 %s%s", milliseconds(s.Programming.P50), milliseconds(s.Programming.P99), lastChange(s.Programming.Last))
	fmt.Fprintln(w, "\nHOOK\tMODE\tATTACHED\t")
	for _, h := range s.Hooks {
		fmt.Fprintf(w, "%s\t%s\t%s\t\n", h.Hook, h.Mode, yes(h.Attached))
	}
	fmt.Fprintln(w, "\nTABLE\tUSED\tCAPACITY\tFULL")
	for _, t := range s.Tables {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d%%\n", t.Table, t.Used, t.Capacity, 100*uint64(t.Used)/max(1, uint64(t.Capacity)))
	}
	fmt.Fprintln(w, "\nDENIED\tERRNO\tCALLS\t")
	for _, d := range s.Denied {
		fmt.Fprintf(w, "%s\t%s\t%d\t\n", d.Reason, d.Errno, d.Count)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(env.out)
	for _, m := range s.Missing {
		fmt.Fprintln(env.out, "NOTE  this kernel has no", m)
	}
	for _, f := range s.Ineffective {
		fmt.Fprintln(env.out, "NOTE ", f, "has no effect yet")
	}
	for _, d := range s.Degraded {
		fmt.Fprintln(env.out, "WARN ", d)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(env.out, "WARN  %s: %s\n", p.Object, p.Message)
	}
	return nil
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

func lastChange(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " · last " + age(t) + " ago"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// statusWithoutAgent says what the kernel goes on doing.
func statusWithoutAgent(env *environment, brief bool) error {
	r, err := env.resolved()
	if err != nil {
		return err
	}
	hooks := loader.Attachments(env.bpffsRoot)
	s := api.Status{
		Meta: api.Meta{APIVersion: api.Version, Kind: "Status"}, Hooks: hooks,
		Backends: api.Backends{Active: r.Backends - r.Draining, Draining: r.Draining},
		Degraded: append([]string{"no agent runs: traffic goes on as the tables stand, changes are not taken up"}, r.Damage...),
	}
	done, err := env.machine(&s)
	if err != nil {
		return err
	}
	switch {
	case done:
	case brief:
		fmt.Fprintln(env.out, briefly(&s))
	default:
		fmt.Fprintf(env.out, "Agent      not running\nDatapath   %d of %d hooks attached\nTables     %d frontends, %d backends (%d draining)\n",
			attached(hooks), len(hooks), len(r.Frontends), r.Backends, r.Draining)
		for _, d := range s.Degraded {
			fmt.Fprintln(env.out, "WARN ", d)
		}
	}
	return errFinding
}
