// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/reconcile"
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
		Long: "Compare what the agent compiled with what the kernel's tables say, frontend by frontend,\nand check that every cgroup hook is attached. Without an agent the tables are checked for contradictions.\n" +
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
	done, err := env.machine(v, v.Differences)
	if err != nil {
		return err
	}
	if !done {
		for _, d := range v.Differences {
			fmt.Fprintln(env.out, env.paint("DIFFERS")+" ", d)
		}
		if len(v.Differences) == 0 {
			fmt.Fprintf(env.out, "%d frontends, %d backends %s\n", v.Frontends, v.Backends, env.paint("ok"))
		} else {
			fmt.Fprintf(env.out, "%d %s\n", len(v.Differences), plural("difference", len(v.Differences)))
		}
	}
	if len(v.Differences) > 0 {
		return errFinding
	}
	return nil
}

func plural(what string, n int) string {
	if n == 1 {
		return what
	}
	return what + "s"
}

func compare(env *environment) (verdict, error) {
	v := verdict{Meta: api.Meta{APIVersion: api.Version, Kind: "Verdict"}, Differences: []string{}}
	want, trust, err := compiled(env)
	if err != nil {
		return v, err
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
	if trust {
		v.Differences = append(v.Differences, differences(&want, have)...)
	}
	return v, nil
}

// compiled asks the agent what the tables should say; false when it cannot
// know, which people are told.
func compiled(env *environment) (api.Tables, bool, error) {
	status, err := env.client().Status()
	if errors.Is(err, api.ErrNoAgent) {
		env.note("agent: not running; pinned tables are checked for contradictions only")
		return api.Tables{}, false, nil
	}
	if err != nil {
		return api.Tables{}, false, err
	}
	if !status.Synced {
		env.note("agent: has not seen everything yet; pinned tables are checked for contradictions only")
		return api.Tables{}, false, nil
	}
	want, err := env.client().Tables()
	return want, err == nil, err
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
	var addrs, cidrs, owners []string
	for addr, id := range have.Owners {
		owners = append(owners, addr.String()+" "+maps.OwnerName(id))
	}
	for addr := range have.NodeAddrs {
		addrs = append(addrs, addr.String())
	}
	for _, c := range have.CIDRs {
		cidrs = append(cidrs, c.String())
	}
	out = append(out, onlyInOne("node address", want.NodeAddrs, addrs)...)
	out = append(out, onlyInOne("owner of", want.Owners, owners)...)
	out = append(out, onlyInOne("service CIDR", usedCIDRs(want.ServiceCIDRs), cidrs)...)
	slices.Sort(out)
	return out
}

// usedCIDRs are those that the tables have room for, as programs see them.
func usedCIDRs(list []string) []string {
	var out []string
	for _, text := range list[:min(len(list), reconcile.MaxServiceCIDRs)] {
		if p, err := netip.ParsePrefix(text); err == nil {
			text = p.Masked().String()
		}
		out = append(out, text)
	}
	return out
}

func onlyInOne(what string, want, have []string) []string {
	var out []string
	for _, w := range want {
		if !slices.Contains(have, w) {
			out = append(out, fmt.Sprintf("%s %s: missing in the kernel", what, w))
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			out = append(out, fmt.Sprintf("%s %s: in the kernel only", what, h))
		}
	}
	return out
}

func differs(key string, w *api.Frontend, f *maps.Frontend) []string {
	var out []string
	note := func(what string, want, have any) {
		out = append(out, fmt.Sprintf("frontend %s of %s: %s: in the kernel %v, compiled %v", key, w.Service, what, have, want))
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
