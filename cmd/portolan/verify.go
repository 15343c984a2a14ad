// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
)

// verdict is what verify found.
type verdict struct {
	api.Meta
	Frontends   int      `json:"frontends"`
	Backends    int      `json:"backends"`
	Differences []string `json:"differences"`
}

func newVerify(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Compare the compiled tables with the kernel's, and check the hooks",
		Long: "Compare what the agent compiled with what the kernel's tables say, frontend by frontend,\nand check that every hook is attached. Without an agent the tables are checked for contradictions.\n" +
			"Exit code 1 when something differs.",
		Example: "  portolan verify\n  portolan verify -o json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return verify(env) },
	}
}

// attempts at a comparison: an agent that is just writing makes tables and
// answer differ for a moment.
const attempts = 3

func verify(env *environment) error {
	var v verdict
	for i := range attempts {
		if i > 0 {
			time.Sleep(200 * time.Millisecond)
		}
		found, err := compare(env)
		if err != nil {
			return err
		}
		if v = found; len(v.Differences) == 0 {
			break
		}
	}
	done, err := env.machine(v)
	if err != nil {
		return err
	}
	if !done {
		for _, d := range v.Differences {
			fmt.Fprintln(env.out, "DIFFERS ", d)
		}
		if len(v.Differences) == 0 {
			fmt.Fprintf(env.out, "%d frontends, %d backends ok\n", v.Frontends, v.Backends)
		} else {
			fmt.Fprintf(env.out, "%d differences\n", len(v.Differences))
		}
	}
	if len(v.Differences) > 0 {
		return errFinding
	}
	return nil
}

func compare(env *environment) (verdict, error) {
	v := verdict{Meta: api.Meta{APIVersion: api.Version, Kind: "Verdict"}, Differences: []string{}}
	want, agentErr := env.client().Tables()
	if agentErr != nil && !errors.Is(agentErr, api.ErrNoAgent) {
		return v, agentErr
	}
	have, err := env.resolved()
	if err != nil {
		return v, err
	}
	v.Frontends, v.Backends = len(have.Frontends), have.Backends
	v.Differences = append(v.Differences, have.Damage...)
	for _, h := range loader.Attachments(env.bpffsRoot) {
		if !h.Attached {
			v.Differences = append(v.Differences, fmt.Sprintf("hook %s: %s", h.Hook, h.Error))
		}
	}
	if agentErr != nil {
		env.note("agent: not running; the tables are compared with themselves only")
		return v, nil
	}
	v.Differences = append(v.Differences, differences(&want, have)...)
	return v, nil
}

func differences(want *api.Tables, have *maps.Resolved) []string {
	var out []string
	index := map[string]*maps.Frontend{}
	for i := range have.Frontends {
		f := &have.Frontends[i]
		index[f.Addr.String()+"/"+protocolName(f.Protocol)] = f
	}
	for i := range want.Frontends {
		w := &want.Frontends[i]
		key := w.Address + "/" + w.Protocol
		f := index[key]
		delete(index, key)
		if f == nil {
			out = append(out, fmt.Sprintf("frontend %s of %s: missing in the kernel", key, w.Service))
			continue
		}
		out = append(out, differs(key, w, f)...)
	}
	for key, f := range index {
		out = append(out, fmt.Sprintf("frontend %s of %s/%s: in the kernel only", key, f.Name.Namespace, f.Name.Name))
	}
	for _, addr := range want.NodeAddrs {
		if !slices.ContainsFunc(nodeAddrs(have), func(a string) bool { return a == addr }) {
			out = append(out, fmt.Sprintf("node address %s: missing in the kernel", addr))
		}
	}
	slices.Sort(out)
	return out
}

func nodeAddrs(have *maps.Resolved) []string {
	var out []string
	for a := range have.NodeAddrs {
		out = append(out, a.String())
	}
	return out
}

func differs(key string, w *api.Frontend, f *maps.Frontend) []string {
	var out []string
	note := func(what string, want, have any) {
		out = append(out, fmt.Sprintf("frontend %s of %s: %s is %v, compiled %v", key, w.Service, what, have, want))
	}
	if name := f.Name.Namespace + "/" + f.Name.Name; name != w.Service || f.Name.Port != w.PortName {
		note("owner", w.Service+":"+w.PortName, name+":"+f.Name.Port)
	}
	if int(f.Affinity) != w.Affinity {
		note("affinity", w.Affinity, f.Affinity)
	}
	var sources []string
	for _, p := range f.Sources {
		sources = append(sources, p.String())
	}
	if !slices.Equal(slices.Sorted(slices.Values(sources)), slices.Sorted(slices.Values(w.Sources))) {
		note("source ranges", w.Sources, sources)
	}
	for _, scope := range []struct {
		name string
		want *api.Scope
		have *maps.Range
	}{{"internal", &w.Internal, &f.Internal}, {"external", &w.External, &f.External}} {
		backends := make([]string, 0, len(scope.have.Backends))
		for _, b := range scope.have.Backends {
			backends = append(backends, b.Addr.String())
		}
		slices.Sort(backends)
		if !slices.Equal(backends, scope.want.Backends) {
			note(scope.name+" backends", scope.want.Backends, backends)
		}
		if scope.have.Empty() != scope.want.Empty {
			note(scope.name+" answer", scope.want.Empty, scope.have.Empty())
		}
	}
	return out
}
