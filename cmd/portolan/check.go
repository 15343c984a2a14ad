// SPDX-License-Identifier: Apache-2.0

package main

import (
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
		Long:    "Find out whether this machine can run Portolan, and what each missing thing means.\nExit code 1 when something required is missing; a warning costs a part only.",
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
			add("fail", feature.Name, "needed (%s) and not there: %v; use Linux %s or later, built with it", feature.Purpose, err, feature.Since)
		default:
			add("warn", feature.Name, "missing (Linux %s): %s", feature.Since, feature.Without)
		}
	}
	if missing, err := loader.MissingCapabilities(); err != nil {
		add("fail", "capabilities", "%v", err)
	} else if len(missing) > 0 {
		add("fail", "capabilities", "missing %s; run as root or grant them (container: securityContext.capabilities.add)", strings.Join(missing, ", "))
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
		add("warn", "kube-proxy", "also runs on this node (%s mode): what opens anew is served by Portolan, TCP connections that kube-proxy holds go on; while it stays, give the agent other ports by --healthz-bind-address and --metrics-bind-address", mode)
	}
	return env.printFindings(&f)
}

func (e *environment) printFindings(f *findings) error {
	failed := false
	var rows [][]string
	var names []string
	for _, x := range f.Items {
		failed = failed || x.State == "fail"
		rows = append(rows, []string{x.State, x.What, x.Text})
		names = append(names, "check/"+strings.ReplaceAll(x.What, " ", "-"))
	}
	done, err := e.machine(f, names)
	if err == nil && !done {
		err = e.table([]string{"STATE", "WHAT", "MEANING"}, rows, 0)
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
