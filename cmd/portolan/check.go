// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/api"
)

// finding is one line of check.
type finding struct {
	State string `json:"state"` // ok, warn, fail
	What  string `json:"what"`
	Text  string `json:"text"`
}

type findings struct {
	api.Meta
	Items []finding `json:"items"`
}

func newCheck(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		Short:   "Find out whether this machine can run Portolan",
		Long:    "Find out whether this machine can run Portolan, and what each missing thing means.\nExit code 1 when something required is missing.",
		Example: "  portolan check\n  portolan check -o json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return check(env) },
	}
}

func check(env *environment) error {
	f := findings{Meta: api.Meta{APIVersion: api.Version, Kind: "Check"}}
	add := func(state, what, format string, args ...any) {
		f.Items = append(f.Items, finding{state, what, fmt.Sprintf(format, args...)})
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	add("ok", "kernel", "%s", strings.TrimSpace(string(release)))
	for _, feature := range loader.Features() {
		err := feature.Probe()
		switch {
		case err == nil:
			add("ok", feature.Name, "%s", feature.Purpose)
		case feature.Required:
			add("fail", feature.Name, "needed (%s) and missing: use Linux %s or later; %v", feature.Purpose, feature.Since, err)
		default:
			add("warn", feature.Name, "missing (Linux %s): %s", feature.Since, feature.Without)
		}
	}
	if missing, err := loader.MissingCapabilities(); err != nil {
		add("fail", "capabilities", "%v", err)
	} else if len(missing) > 0 {
		add("fail", "capabilities", "missing %s: run as root or grant them", strings.Join(missing, ", "))
	} else {
		add("ok", "capabilities", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON")
	}
	if dir, err := loader.FindCgroup2(); err != nil {
		add("fail", "cgroup2", "%v", err)
	} else {
		add("ok", "cgroup2", "%s", dir)
	}
	if err := loader.CheckBPFFS(env.bpffsRoot); err != nil {
		add("fail", "bpffs", "%v", err)
	} else {
		add("ok", "bpffs", "%s", env.bpffsRoot)
	}
	if mode := kubeProxyMode(); mode != "" {
		add("warn", "kube-proxy", "also runs on this node (%s mode): sockets are served by Portolan, packets from outside by kube-proxy", mode)
	}
	return env.printFindings(&f)
}

func (e *environment) printFindings(f *findings) error {
	done, err := e.machine(f)
	if err != nil {
		return err
	}
	failed := false
	var rows [][]string
	for _, x := range f.Items {
		failed = failed || x.State == "fail"
		rows = append(rows, []string{x.State, x.What, x.Text})
	}
	if !done {
		err = e.table([]string{"STATE", "WHAT", "MEANING"}, rows)
	}
	if err == nil && failed {
		return errFinding
	}
	return err
}

// kubeProxyMode asks whether a kube-proxy answers where it does by default.
func kubeProxyMode() string {
	client := http.Client{Timeout: time.Second}
	answer, err := client.Get("http://127.0.0.1:10249/proxyMode")
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	mode, err := io.ReadAll(io.LimitReader(answer.Body, 64))
	if err != nil || answer.StatusCode != http.StatusOK || string(mode) == "portolan" {
		return ""
	}
	return string(mode)
}

func newCleanup(env *environment) *cobra.Command {
	var dryRun, agreed bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Detach every program and remove every table",
		Long:  "Detach every program and remove every table of --bpffs-root: Services are not translated any more.\nStop the agent first.",
		Example: `  portolan cleanup --dry-run
  portolan cleanup --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dryRun && !agreed && !confirmed(env, cmd.InOrStdin()) {
				return errors.New("nothing was removed; say --yes to do it")
			}
			return cleanup(env, dryRun)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	cmd.Flags().BoolVarP(&agreed, "yes", "y", false, "do not ask")
	return cmd
}

// confirmed asks at a terminal; anything else has to say --yes.
func confirmed(env *environment, in io.Reader) bool {
	file, ok := in.(*os.File)
	if !ok {
		return false
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	fmt.Fprintf(env.errOut, "Remove all programs and tables of %s? Services stop working for new connections. [y/N] ", env.bpffsRoot)
	var answer string
	// No answer is a no.
	_, _ = fmt.Fscanln(file, &answer)
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
}

func cleanup(env *environment, dryRun bool) error {
	removed, err := loader.Cleanup(env.bpffsRoot, dryRun)
	for _, path := range removed {
		if dryRun {
			fmt.Fprintln(env.out, "would remove", path)
		} else {
			fmt.Fprintln(env.out, "removed", path)
		}
	}
	if errors.Is(err, loader.ErrInUse) {
		fmt.Fprintln(env.errOut, "portolan:", err)
		return errFinding
	}
	if err == nil && len(removed) == 0 {
		env.note("there is nothing to remove in %s", env.bpffsRoot)
	}
	return err
}
