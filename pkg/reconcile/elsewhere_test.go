// SPDX-License-Identifier: Apache-2.0

// Needs root: real tables, no programs.

package reconcile

import (
	"net/netip"
	"testing"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

var sharedVIP = netip.MustParseAddr("10.96.0.1")

// claimant is a Service with the shared cluster IP, which proxy serves; "" is
// us.
func claimant(name, proxy string) *service.Service {
	return &service.Service{Name: service.Name{Namespace: "default", Name: name}, ProxyName: proxy,
		ClusterIPs: []netip.Addr{sharedVIP}, Ports: []service.Port{{Protocol: service.TCP, Port: 80}}}
}

func services(all ...*service.Service) compile.Update {
	u := compile.Update{Services: map[service.Name]*service.Service{}}
	for _, s := range all {
		u.Services[s.Name] = s
	}
	return u
}

func gone(name string) compile.Update {
	return compile.Update{Services: map[service.Name]*service.Service{{Namespace: "default", Name: name}: nil}}
}

// Services that other proxies serve may have one cluster IP in common: it is
// theirs until the last of them has gone.
func TestAddressIsElsewhereUntilTheLastServiceThatSaysSoIsGone(t *testing.T) {
	requireRoot(t)
	const ours, elsewhere, none = maps.AddressOurs, maps.AddressElsewhere, uint32(0)
	type step struct {
		what    string
		update  compile.Update
		restart bool
		owner   uint32
	}
	a, b := claimant("a", "other"), claimant("b", "third")
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"both at once, the first goes", []step{
			{what: "a and b come", update: services(a, b), owner: elsewhere},
			{what: "a goes", update: gone("a"), owner: elsewhere},
			{what: "b goes", update: gone("b"), owner: none},
		}},
		{"one after the other, the second goes", []step{
			{what: "a comes", update: services(a), owner: elsewhere},
			{what: "b comes", update: services(b), owner: elsewhere},
			{what: "b goes", update: gone("b"), owner: elsewhere},
			{what: "a goes", update: gone("a"), owner: none},
		}},
		{"a new agent comes between", []step{
			{what: "a and b come", update: services(a, b), owner: elsewhere},
			{what: "restart", restart: true, owner: elsewhere},
			{what: "a goes", update: gone("a"), owner: elsewhere},
			{what: "restart", restart: true, owner: elsewhere},
			{what: "b goes", update: gone("b"), owner: none},
		}},
		{"one goes while no agent runs", []step{
			{what: "a and b come", update: services(a, b), owner: elsewhere},
			{what: "restart without a", update: gone("a"), restart: true, owner: elsewhere},
			{what: "restart without b", update: gone("b"), restart: true, owner: none},
		}},
		{"one becomes ours", []step{
			{what: "a and b come", update: services(a, b), owner: elsewhere},
			{what: "a becomes ours", update: services(claimant("a", "")), owner: elsewhere},
			{what: "b goes", update: gone("b"), owner: ours},
			{what: "b comes back", update: services(b), owner: elsewhere},
			{what: "a goes", update: gone("a"), owner: elsewhere},
			{what: "b goes", update: gone("b"), owner: none},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bench := newBench(t, nil, services())
			defer func() { bench.r.set.Close() }()
			for _, s := range c.steps {
				for name, object := range s.update.Services {
					bench.objects.Services[name] = object
				}
				if s.restart {
					bench = newBench(t, bench.r.set, bench.objects)
				} else {
					bench.apply(t, s.update)
				}
				resolved, err := bench.r.set.Resolve()
				if err != nil {
					t.Fatal(err)
				}
				if got := resolved.Owners[sharedVIP]; got != s.owner {
					t.Errorf("%s: the address is owned by %#x, want %#x", s.what, got, s.owner)
				}
				fresh := newBench(t, nil, bench.objects)
				if have, want := tables(t, bench.r.set), tables(t, fresh.r.set); have != want {
					t.Errorf("%s: tables are\n%s\nfrom nothing\n%s", s.what, have, want)
				}
				fresh.r.set.Close()
			}
			bench.recycle()
			if leak := bench.leaks(); leak != "" {
				t.Errorf("leak: %s", leak)
			}
		})
	}
}
