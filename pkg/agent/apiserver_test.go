// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// sliceOf is a slice of the Service in default with these ready addresses;
// those that begin with ! are not ready.
func sliceOf(name, of string, addrs ...string) *service.EndpointSlice {
	sl := &service.EndpointSlice{Name: service.Name{Namespace: "default", Name: name}, Service: of, Family: service.IPv4,
		Ports: []service.SlicePort{{Name: "https", Protocol: service.TCP, Port: 6443}}}
	for _, text := range addrs {
		ready := text[0] != '!'
		if !ready {
			text = text[1:]
		}
		sl.Endpoints = append(sl.Endpoints, service.Endpoint{Addr: netip.MustParseAddr(text), Ready: ready})
	}
	return sl
}

// step is an update and what must come of it.
type step struct {
	slices map[string]*service.EndpointSlice
	kept   bool
	// used are the endpoints of Service kubernetes as others see them after it.
	used []string
}

func TestTheAPIServersEndpointsNeverGoToZero(t *testing.T) {
	t.Parallel()
	one, two := sliceOf("kubernetes", "kubernetes", "192.0.2.1"), sliceOf("kubernetes", "kubernetes", "192.0.2.2")
	none, sick := sliceOf("kubernetes", "kubernetes"), sliceOf("kubernetes", "kubernetes", "!192.0.2.1")
	type m = map[string]*service.EndpointSlice
	for name, steps := range map[string][]step{
		"the slice goes and comes back":          {{m{"kubernetes": one}, false, []string{"192.0.2.1"}}, {m{"kubernetes": nil}, true, []string{"192.0.2.1"}}, {m{"kubernetes": two}, false, []string{"192.0.2.2"}}},
		"it is emptied":                          {{m{"kubernetes": one}, false, []string{"192.0.2.1"}}, {m{"kubernetes": none}, true, []string{"192.0.2.1"}}, {m{"kubernetes": one}, false, []string{"192.0.2.1"}}},
		"its endpoint is not ready":              {{m{"kubernetes": one}, false, []string{"192.0.2.1"}}, {m{"kubernetes": sick}, true, []string{"192.0.2.1"}}, {m{"other": sliceOf("other", "other")}, true, []string{"192.0.2.1"}}},
		"another slice takes its place":          {{m{"kubernetes": one}, false, []string{"192.0.2.1"}}, {m{"kubernetes": nil}, true, []string{"192.0.2.1"}}, {m{"new": sliceOf("new", "kubernetes", "192.0.2.3")}, false, []string{"192.0.2.3"}}},
		"it is given to another Service":         {{m{"kubernetes": one}, false, []string{"192.0.2.1"}}, {m{"kubernetes": sliceOf("kubernetes", "web", "10.0.0.1")}, true, []string{"192.0.2.1"}}},
		"one of two goes":                        {{m{"kubernetes": one, "more": sliceOf("more", "kubernetes", "192.0.2.9")}, false, []string{"192.0.2.1", "192.0.2.9"}}, {m{"kubernetes": nil}, false, []string{"192.0.2.9"}}, {m{"more": nil}, true, []string{"192.0.2.9"}}},
		"both go one by one, one comes back":     {{m{"kubernetes": one, "more": sliceOf("more", "kubernetes", "192.0.2.9")}, false, []string{"192.0.2.1", "192.0.2.9"}}, {m{"kubernetes": nil, "more": nil}, true, []string{"192.0.2.1", "192.0.2.9"}}, {m{"kubernetes": one}, false, []string{"192.0.2.1"}}},
		"there was nothing from the beginning":   {{m{"kubernetes": none}, false, nil}, {m{"kubernetes": one}, false, []string{"192.0.2.1"}}},
		"another Service's endpoints may all go": {{m{"web": sliceOf("web", "web", "10.0.0.1")}, false, nil}, {m{"web": nil}, false, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, seen := newKeeper(), map[service.Name]*service.EndpointSlice{}
			for i, s := range steps {
				u := source.Update{Slices: map[service.Name]*service.EndpointSlice{}}
				for name, sl := range s.slices {
					u.Slices[service.Name{Namespace: "default", Name: name}] = sl
				}
				if _, kept := k.review(&u); kept != s.kept {
					t.Errorf("step %d: endpoints are kept: %v, want %v", i, kept, s.kept)
				}
				// What others see.
				for name, sl := range u.Slices {
					if delete(seen, name); sl != nil && sl.ServiceName() == apiService {
						seen[name] = sl
					}
				}
				var got []string
				for _, at := range endpoints(seen) {
					got = append(got, at.Addr().String())
				}
				if !slices.Equal(got, s.used) {
					t.Errorf("step %d: endpoints are %v, want %v", i, got, s.used)
				}
			}
		})
	}
}

func TestOnlyTheAPIServersSlicesAreKept(t *testing.T) {
	t.Parallel()
	k := newKeeper()
	first := source.Update{Slices: map[service.Name]*service.EndpointSlice{
		{Namespace: "default", Name: "kubernetes"}: sliceOf("kubernetes", "kubernetes", "192.0.2.1"),
		{Namespace: "default", Name: "web"}:        sliceOf("web", "web", "10.0.0.1"),
	}}
	k.review(&first)
	if len(first.Slices) != 2 {
		t.Errorf("of the first update %v is left", first.Slices)
	}
	second := source.Update{Slices: map[service.Name]*service.EndpointSlice{
		{Namespace: "default", Name: "kubernetes"}: nil,
		{Namespace: "default", Name: "web"}:        nil,
	}}
	k.review(&second)
	if _, ok := second.Slices[service.Name{Namespace: "default", Name: "web"}]; !ok || len(second.Slices) != 1 {
		t.Errorf("of the second update %v is left", second.Slices)
	}
}

func TestAPIServersAreRememberedAndAFileOfSomethingElseIsNamed(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if got, err := ReadAPIServers(dir); err != nil || got != nil {
		t.Errorf("of no directory %v is read, %v", got, err)
	}
	for _, list := range [][]netip.AddrPort{
		{netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("[2001:db8::1]:6443")},
		{netip.MustParseAddrPort("192.0.2.2:6443")},
	} {
		for range 2 {
			if err := writeAPIServers(dir, list); err != nil {
				t.Fatal(err)
			}
			if got, err := ReadAPIServers(dir); err != nil || !slices.Equal(got, list) {
				t.Errorf("%v is read as %v, %v", list, got, err)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(dir, apiServersFile), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadAPIServers(dir); err == nil || got != nil {
		t.Errorf("a broken file is read as %v", got)
	}
	if err := writeAPIServers(filepath.Join(dir, apiServersFile), nil); err == nil {
		t.Error("a directory that is a file was written to")
	}
}
