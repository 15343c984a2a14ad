// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2, and bpffs at /sys/fs/bpf.

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/service"
)

// dataplane leaves programs and tables as a dead agent leaves them:
//
//	default/web  10.96.0.10:80/TCP and NodePort 30080, two endpoints, one here
//	default/dns  [fd00::10]:53/UDP, no endpoint anywhere
func dataplane(t *testing.T, c *command) *maps.Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF programs")
	}
	mount, err := loader.FindCgroup2()
	must(t, err)
	cgroup, err := os.MkdirTemp(mount, "portolan-cli-")
	must(t, err)
	t.Cleanup(func() { os.Remove(cgroup) })
	root := filepath.Join("/sys/fs/bpf", filepath.Base(cgroup))
	c.bpffs = root
	t.Cleanup(func() {
		if _, err := loader.Cleanup(root, false); err != nil {
			t.Error(err)
		}
	})
	set, err := maps.Create(maps.Sizes{})
	must(t, err)
	t.Cleanup(set.Close)
	fill(t, set)
	l, err := loader.Open(loader.Config{BPFFSRoot: c.bpffs, CgroupRoot: cgroup})
	must(t, err)
	defer l.Close()
	must(t, l.Attach(set))
	return set
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, s *maps.Set) {
	t.Helper()
	for i, addr := range []string{"10.244.1.11:8080", "10.244.1.12:8080"} {
		at := netip.MustParseAddrPort(addr)
		*s.Backends4.At(uint32(3 + i)) = bpf.LbBackend4{Addr: maps.Addr4(at.Addr()), Port: maps.Port16(at.Port()), Proto: 6,
			Flags: maps.BackendActive | maps.BackendInCluster, ServicePort: 5, Generation: 7}
		*s.Slots.At(uint32(8 + i)) = bpf.LbSlot{Backend: uint32(3 + i), Generation: 7}
	}
	s.Backends4.At(3).Flags |= maps.BackendInLocal | maps.BackendOnNode
	*s.FrontendState.At(1) = bpf.LbFrontendState{ServicePort: 5, Generation: 2, AffinityTimeout: 30,
		Internal: maps.RangeWord(8, 2, maps.RangeAffinity), External: maps.RangeWord(8, 2, maps.RangeAffinity)}
	*s.FrontendState.At(2) = bpf.LbFrontendState{ServicePort: 6, Generation: 1, Internal: maps.RangeWord(0, 0, maps.RangeRefuse), External: maps.RangeWord(0, 0, maps.RangeRefuse)}
	*s.FrontendState.At(3) = bpf.LbFrontendState{ServicePort: 5, Generation: 1, AffinityTimeout: 30,
		Internal: maps.RangeWord(8, 2, maps.RangeAffinity), External: maps.RangeWord(8, 1, maps.RangeAffinity|maps.RangeLocal)}
	for id, n := range map[uint32][2]string{5: {"web", "http"}, 6: {"dns", ""}} {
		var name bpf.LbServiceName
		maps.PutString(name.Namespace[:], "default")
		maps.PutString(name.Name[:], n[0])
		maps.PutString(name.Port[:], n[1])
		if n[0] == "web" {
			name.Type = uint8(service.NodePort)
		}
		must(t, s.ServiceNames.Put(id, name))
	}
	must(t, s.Frontends4.Put(maps.Frontend4Key(netip.MustParseAddrPort("10.96.0.10:80"), 6), 1))
	must(t, s.Frontends6.Put(maps.Frontend6Key(netip.MustParseAddrPort("[fd00::10]:53"), 17), 2))
	must(t, s.Frontends4.Put(maps.Frontend4Key(netip.MustParseAddrPort("0.0.0.0:30080"), 6), 3))
	must(t, s.Frontends4.Put(maps.Frontend4Key(netip.MustParseAddrPort("10.96.0.10:0"), 0), maps.AddressOurs))
	must(t, s.Frontends6.Put(maps.Frontend6Key(netip.MustParseAddrPort("[fd00::10]:0"), 0), maps.AddressOurs))
	must(t, s.NodeAddrs4.Put(maps.Addr4(netip.MustParseAddr("127.0.0.1")), maps.NodeAddrHostOnly))
	must(t, s.Affinity.Put(bpf.LbAffinityKey{Client: [2]uint64{4026, 0}, ServicePort: 5}, bpf.LbAffinity{Backend: 3, Generation: 7}))
	config := s.NodeConfig.At(0)
	config.Cidrs[config.ActiveCidrs].Count = 1
	config.Cidrs[config.ActiveCidrs].Cidrs[0] = maps.CIDR(netip.MustParsePrefix("10.96.0.0/12"))
	for _, addr := range []string{"10.96.0.10", "fd00::10", "127.0.0.1"} {
		bit := maps.FilterBit(netip.MustParseAddr(addr), s.VIPFilter.Len()*64)
		s.VIPFilter.StoreWord(bit/64, 0, s.VIPFilter.LoadWord(bit/64, 0)|1<<(bit%64))
	}
}

// matching is an agent whose compiled tables are those of dataplane.
func matching() *objects {
	o := whole()
	both := api.Scope{Backends: []string{"10.244.1.11:8080", "10.244.1.12:8080"}}
	refused := api.Scope{Backends: []string{}, Empty: maps.EmptyRefuse}
	o.tables = api.Tables{
		Frontends: []api.Frontend{
			{Address: "10.96.0.10:80", Protocol: "TCP", Service: "default/web", PortName: "http", Internal: both, External: both, Affinity: 30},
			{Address: "0.0.0.0:30080", Protocol: "TCP", Service: "default/web", PortName: "http", Internal: both, External: api.Scope{Backends: both.Backends[:1]}, Affinity: 30},
			{Address: "[fd00::10]:53", Protocol: "UDP", Service: "default/dns", Internal: refused, External: refused},
		},
		NodeAddrs: []string{"127.0.0.1"}, ServiceCIDRs: []string{"10.96.0.0/12"},
		Owners: []string{"10.96.0.10 ours", "fd00::10 ours"},
	}
	return o
}

// A Maglev table names a backend many times; the first slot of each is told.
func TestDumpedSlotsAreThoseOfTheirBackends(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	set := dataplane(t, c)
	for i, backend := range []uint32{3, 3, 3, 4, 3} {
		*set.Slots.At(uint32(20 + i)) = bpf.LbSlot{Backend: backend, Generation: 7}
	}
	word := maps.RangeWord(20, 5, maps.RangeMaglev)
	set.FrontendState.At(1).Internal, set.FrontendState.At(1).External = word, word
	out, _ := c.run(exitFine, "dump", "slots", "--addr", "10.244.1.12")
	if got := strings.Fields(out); len(got) == 0 || got[0] != "9" || !strings.Contains(out, "23 backend=4 ") || strings.Count(out, "\n") != 2 {
		t.Errorf("dump slots says\n%s", out)
	}
}

func TestPinnedTablesAreReadWhileNoAgentRuns(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	for file, args := range map[string]string{
		"pinned-services.txt":  "services",
		"pinned-web.txt":       "services 10.96.0.10:80",
		"pinned-services.json": "services -o json",
		"dump-all.txt":         "dump all",
		"dump-web.txt":         "dump backends --service default/web --limit 1",
		"dump-vip.txt":         "dump all --addr fd00:0::10",
		"dump-udp.json":        "dump frontends --proto udp -o json",
		"dump-names.txt":       "dump all -o name --addr 10.96.0.10",
		"dump-raw.txt":         "dump node-addrs --raw --limit 1",
	} {
		out, errOut := c.run(exitFine, strings.Fields(args)...)
		golden(t, file, out)
		if told := strings.Contains(errOut, "agent: not running; reading pinned tables"); told != strings.HasPrefix(args, "services") {
			t.Errorf("portolan %s: standard error %q", args, errOut)
		}
	}
	if _, errOut := c.run(exitFine, "services", "-q"); errOut != "" {
		t.Errorf("quiet, but standard error is %q", errOut)
	}
}

func TestTablesOfTheWireAreToldInWords(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	set := dataplane(t, c)
	var web uint32
	r, err := set.Resolve()
	must(t, err)
	for _, f := range r.Frontends {
		if f.Addr.String() == "10.96.0.10:80" {
			web = f.ID
		}
	}
	addr := func(s string) uint32 { return maps.Addr4(netip.MustParseAddr(s)) }
	must(t, set.Flows4.Put(
		bpf.LbFlow4Key{Src: addr("198.51.100.7"), Dst: addr("10.96.0.10"), Sport: maps.Port16(40000), Dport: maps.Port16(80), Proto: 6},
		bpf.LbFlow4{Flow: bpf.LbFlow{Sport: maps.Port16(50000), Dport: maps.Port16(8080), Frontend: web, Backend: 1, Action: 2, State: 1, LastSeen: 1 << 31},
			Src: addr("192.0.2.1"), Dst: addr("10.244.1.11")}))
	must(t, set.Refusals.Put(bpf.LbRefusalKey{Reason: 8, Frontend: web, Backend: 1}, 3))
	must(t, set.Refusals.Put(bpf.LbRefusalKey{Reason: 13, Frontend: maps.Nobody, Backend: maps.Nobody}, 2))
	must(t, set.TunnelEnds.Put(maps.TunnelEndKey(netip.MustParseAddr("10.244.1.11"), r.Frontends[0].ServicePort), 1))
	must(t, set.TunnelEnds.Put(maps.TunnelEndKey(netip.MustParseAddr("10.244.1.11"), 0), 0))
	for args, want := range map[string]string{
		"dump flows":                              "TCP 198.51.100.7:40000>10.96.0.10:80 forward 192.0.2.1:50000>10.244.1.11:8080 default/web established idle=",
		"dump refusals":                           "malformed packets=2\nmasquerade-ports 10.96.0.10:80/TCP default/web:http backend=1 packets=3\n",
		"dump refusals --service default/web":     "masquerade-ports 10.96.0.10:80/TCP default/web:http backend=1 packets=3\n",
		"dump tunnel-ends":                        "10.244.1.11 " + r.Frontends[0].Name.Namespace + "/" + r.Frontends[0].Name.Name,
		"dump flows --addr 10.96.0.10:80 -o name": "flows/TCP",
	} {
		if out, _ := c.run(exitFine, strings.Fields(args)...); !strings.HasPrefix(out, want) || strings.Count(out, "\n") != max(1, strings.Count(want, "\n")) {
			t.Errorf("portolan %s: %q, want %q", args, out, want)
		}
	}
	if out, _ := c.run(exitFine, "dump", "flows", "--service", "default/dns"); out != "" {
		t.Errorf("flows of another Service: %q", out)
	}
}

func TestStatusWithoutAnAgentSaysWhatGoesOn(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	out, _ := c.run(exitFinding, "status")
	for _, want := range []string{"not running", "3             frontends · backends 2 (0 draining)", "changes are not taken up", "cgroup/connect4"} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	if out, _ = c.run(exitFinding, "status", "-o", "json"); strings.Contains(out, "null") {
		t.Errorf("a list is null:\n%s", out)
	}
}

func TestTablesAsCompiledVerify(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	if out, errOut := c.run(exitFine, "verify"); out != "3 frontends, 2 backends ok\n" || !strings.Contains(errOut, "contradictions only") {
		t.Errorf("without an agent: %q, %q", out, errOut)
	}
	c.agent(matching())
	if out, errOut := c.run(exitFine, "verify"); out != "3 frontends, 2 backends ok\n" || errOut != "" {
		t.Errorf("with an agent: %q, %q", out, errOut)
	}
}

func TestAnAgentThatHasNotSyncedIsNotComparedWith(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	o := whole()
	o.status.Synced = false
	c.agent(o)
	if _, errOut := c.run(exitFine, "verify"); !strings.Contains(errOut, "has not seen everything yet") {
		t.Errorf("standard error %q", errOut)
	}
}

func TestEveryDifferenceIsNamed(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	set := dataplane(t, c)
	o := matching()
	o.tables.NodeAddrs = []string{"192.0.2.1"}
	o.tables.ServiceCIDRs = []string{"10.96.0.0/16"}
	o.tables.Frontends[0].Affinity = 60
	o.tables.Frontends[0].Internal.Backends = []string{"10.244.1.11:8080"}
	o.tables.Frontends[1].Service = "default/other"
	o.tables.Frontends[2].External.Empty = maps.EmptyDrop
	o.tables.Frontends = append(o.tables.Frontends, api.Frontend{Address: "10.96.0.99:80", Protocol: "TCP", Service: "default/gone"})
	must(t, set.Frontends4.Put(maps.Frontend4Key(netip.MustParseAddrPort("10.96.0.10:81"), 6), 1))
	if _, found := set.Frontends4.Remove(maps.Frontend4Key(netip.MustParseAddrPort("10.96.0.10:0"), 0)); !found {
		t.Fatal("10.96.0.10 has no owner")
	}
	must(t, set.Frontends4.Put(maps.Frontend4Key(netip.MustParseAddrPort("203.0.113.9:0"), 0), maps.AddressPublished))
	must(t, os.Remove(filepath.Join(c.bpffs, "links", "connect4")))
	c.agent(o)
	out, _ := c.run(exitFinding, "verify")
	golden(t, "verify.txt", out)
	out, _ = c.run(exitFinding, "verify", "-o", "json")
	golden(t, "verify.json", out)
}

func TestDamageIsFoundWithoutAnAgent(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	set := dataplane(t, c)
	set.Backends4.At(3).Flags = 0
	if out, _ := c.run(exitFinding, "verify"); !strings.Contains(out, "names backend 3, which is dead") {
		t.Errorf("got\n%s", out)
	}
}

func TestCleanupRemovesEverythingWhenToldTo(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	if _, errOut := c.run(exitError, "cleanup"); !strings.Contains(errOut, "say --yes") {
		t.Errorf("without a terminal: %q", errOut)
	}
	would, _ := c.run(exitFine, "cleanup", "--dry-run")
	c.run(exitFine, "verify", "-q")
	did, _ := c.run(exitFine, "cleanup", "--yes")
	if strings.ReplaceAll(would, "would remove", "removed") != did || !strings.Contains(did, "frontends4") {
		t.Errorf("would remove\n%s\nremoved\n%s", would, did)
	}
	c.run(exitNobody, "verify")
	if _, errOut := c.run(exitFine, "cleanup", "--yes"); !strings.Contains(errOut, "nothing to remove") {
		t.Errorf("a second time: %q", errOut)
	}
}

func TestCleanupRefusesWhileAnAgentRuns(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	running, err := loader.Open(loader.Config{BPFFSRoot: c.bpffs})
	must(t, err)
	_, errOut := c.run(exitFinding, "cleanup", "--yes")
	running.Close()
	if !strings.Contains(errOut, "nothing was removed") || !strings.Contains(errOut, "stop the agent first") {
		t.Errorf("standard error %q", errOut)
	}
	c.run(exitFine, "verify", "-q")
}

func TestCheckPassesWhereProgramsCanBeLoaded(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	dataplane(t, c)
	if out, _ := c.run(exitFine, "check"); !strings.Contains(out, "capabilities") || !strings.Contains(out, "cgroup2") {
		t.Errorf("got\n%s", out)
	}
	c.bpffs = t.TempDir()
	if out, _ := c.run(exitFinding, "check"); !strings.Contains(out, "fail") || !strings.Contains(out, "--bpffs-root "+c.bpffs) {
		t.Errorf("a directory that is on no bpffs:\n%s", out)
	}
}
