// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

// Package conformance_test shows that Services behave as Kubernetes defines
// them. Each file of testdata is one behaviour: what users expect, the objects,
// and traffic with what must come of it; rows.txt lists all behaviours by
// number. Every file runs against two real agents on a node each, fed from
// manifests: for sockets of pods and of the node, and for a client outside by
// way of tc and of XDP.
//
//	client ── switch ─┬─ node "here"   pods near1, near2, pod (a client)
//	                  └─ node "there"  pods far1, far2
//
// The client reaches load balancer addresses and ClusterIPs by way of "here", but
// 203.0.113.128/25 by way of "there".
package conformance_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/tools/txtar"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/test/world"
)

var update = flag.Bool("update", false, "write docs/conformance.md")

// programs are built once, for all stages.
var programs struct{ agent, portolan string }

func TestMain(m *testing.M) {
	world.Main()
	flag.Parse()
	dir, err := world.Build("portolan-agent", "portolan")
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(2)
	}
	programs.agent, programs.portolan = filepath.Join(dir, "portolan-agent"), filepath.Join(dir, "portolan")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// behaviour is one file of testdata.
type behaviour struct {
	name  string
	title string
	rows  []int
	files map[string]string
	steps []step
}

// stage is a cluster with agents.
type stage struct {
	t           *testing.T
	mode        string
	world       *world.World
	nodes       []*world.Node
	manifests   []string // of each node
	probes      map[string]*world.Probe
	pods        map[string]*world.Pod // those with a server
	addrs       map[string]netip.Addr // by name, "near1" and "near1_6"
	flags       []string              // of the agents
	more        []string              // flags that a script adds
	agentPlaces [2]*world.Place
	agents      []*world.Process
	applied     int              // how often, which names the marker
	flows       map[string]*flow // of the script under way
	passed      *ebpf.Map        // see countPassed; nil: not in the mode "xdp"
}

// names of pods with a server, and their nodes.
var pods = []struct {
	name string
	node int
}{{"near1", 0}, {"near2", 0}, {"far1", 1}, {"far2", 1}}

func newStage(t *testing.T, mode string, flags ...string) *stage {
	t.Helper()
	world.RequireRoot(t)
	s := &stage{t: t, mode: mode, flags: flags, world: world.NewT(t), pods: map[string]*world.Pod{}, probes: map[string]*world.Probe{}, addrs: map[string]netip.Addr{}}
	uplinks := []*world.Namespace{}
	for _, name := range []string{"here", "there"} {
		n := world.Must(s.world.AddNode(name))(t)
		s.nodes = append(s.nodes, n)
		uplinks = append(uplinks, n.Namespace)
		s.name(name, n.IPv4(), n.IPv6())
	}
	for _, p := range pods {
		pod := world.Must(s.nodes[p.node].AddPod(p.name))(t)
		world.Must(pod.Serve(p.name, "tcp:8080", "udp:8080"))(t)
		// Its name there tells a wrong port number from the right one.
		world.Must(pod.Serve(p.name+"/9090", "tcp:9090", "udp:9090"))(t)
		s.pods[p.name] = pod
		s.probes[p.name] = world.Must(pod.Probe())(t)
		s.name(p.name, pod.IPv4(), pod.IPv6())
	}
	s.addCrowds()
	pods4, pods6 := s.nodes[0].PodCIDRs()
	s.name("gateway", pods4.Addr().Next(), pods6.Addr().Next())
	pod := world.Must(s.nodes[0].AddPod("pod"))(t)
	s.probes["pod"] = world.Must(pod.Probe())(t)
	s.name("pod", pod.IPv4(), pod.IPv6())
	process := world.Must(s.nodes[0].Host("process"))(t)
	world.Must(process.Serve("host", fmt.Sprintf("tcp:%d", hostPort), fmt.Sprintf("udp:%d", hostPort)))(t)
	s.probes["node"] = world.Must(process.Probe())(t)
	s.probes["other"] = world.Must(world.Must(s.nodes[1].Host("process-there"))(t).Probe())(t)
	host := world.Must(s.world.AddHost("client"))(t)
	s.probes["client"] = world.Must(host.Probe())(t)
	s.name("client", host.IPv4(), host.IPv6())
	uplinks = append(uplinks, host.Namespace)
	s.world.LikeHardware(t, uplinks...)
	err := errors.Join(
		host.RouteBy(s.nodes[0], "203.0.113.0/24", "2001:db8:1b::/64", "10.96.0.0/16", "fd00:10:96::/112"),
		host.RouteBy(s.nodes[1], "203.0.113.128/25"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.nodes {
		s.startAgent(i)
	}
	for _, n := range s.nodes {
		s.awaitAgent(n)
	}
	if mode != modes[0].name {
		s.countPassed()
	}
	return s
}

// awaitAgent waits until a node's uplink is served. A request before that would
// be routed on, and the client told of a better way, which it believes for
// minutes.
func (s *stage) awaitAgent(n *world.Node) {
	s.t.Helper()
	err := world.Wait(time.Minute, func() error {
		var devices []loader.DeviceStatus
		if err := n.Do(func() error { devices = loader.PinnedDevices(n.BPFFS()); return nil }); err != nil {
			return err
		}
		if len(devices) != 1 || devices[0].Name != "eth0" || (devices[0].XDP == "none") != (s.mode == modes[0].name) {
			return fmt.Errorf("node %s serves %+v", n.Name(), devices)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) name(name string, v4, v6 netip.Addr) { s.addrs[name], s.addrs[name+"_6"] = v4, v6 }

func (s *stage) startAgent(i int) {
	s.t.Helper()
	dir := filepath.Join(s.nodes[i].Dir(), "manifests")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.manifests = append(s.manifests, dir)
	s.agents = append(s.agents, s.runAgent(i))
}

func (s *stage) runAgent(i int) *world.Process {
	s.t.Helper()
	n := s.nodes[i]
	pods4, pods6 := s.nodes[0].PodCIDRs()
	other4, other6 := s.nodes[1].PodCIDRs()
	args := append(n.AgentFlags(), "--manifests", s.manifests[i], "--service-cidr", "10.96.0.0/16,fd00:10:96::/112",
		"--cluster-cidr", fmt.Sprintf("%s,%s,%s,%s", pods4, pods6, other4, other6), "--devices", "eth0")
	for _, flag := range s.more { // instead of the stage's own
		name, _, _ := strings.Cut(flag, "=")
		if at := slices.Index(args, name); at >= 0 {
			args = slices.Delete(args, at, at+2)
		}
	}
	if s.agentPlaces[i] == nil {
		s.agentPlaces[i] = world.Must(n.Host("agent"))(s.t)
	}
	return world.Must(s.agentPlaces[i].Start(programs.agent, slices.Concat(args, s.flags, s.more)...))(s.t)
}

// readBehaviours reads testdata.
func readBehaviours(t *testing.T) []behaviour {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no behaviours: %v", err)
	}
	var out []behaviour
	for _, path := range paths {
		b := behaviour{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), files: map[string]string{}}
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		comment := strings.TrimSpace(string(archive.Comment))
		b.title, _, _ = strings.Cut(comment, "\n")
		for _, line := range strings.Split(comment, "\n") {
			if list, ok := strings.CutPrefix(line, "rows: "); ok {
				for _, field := range strings.Fields(list) {
					var row int
					if _, err := fmt.Sscan(field, &row); err != nil {
						t.Fatalf("%s: row %q: %v", path, field, err)
					}
					b.rows = append(b.rows, row)
				}
			}
		}
		for _, f := range archive.Files {
			b.files[f.Name] = string(f.Data)
		}
		if b.steps, err = parseSteps(b.files["script"]); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if len(b.rows) == 0 || len(b.steps) == 0 {
			t.Fatalf("%s: no rows or no script", path)
		}
		out = append(out, b)
	}
	return out
}

// modes are how the client's packets are taken; sockets are the same in both.
var modes = []struct {
	name  string
	flags []string
}{{"tc", nil}, {"xdp", []string{"--xdp", "native"}}}

func TestBehaviours(t *testing.T) {
	behaviours := readBehaviours(t)
	var played atomic.Int64
	// After all modes: the document says nothing that this run has not shown.
	t.Cleanup(func() {
		switch all := int64(len(modes) * len(behaviours)); {
		case !*update:
		case t.Failed() || played.Load() != all:
			t.Errorf("%s stays as it is: %d of %d behaviours were played, and all must hold", documentPath, played.Load(), all)
		default:
			if err := os.WriteFile(documentPath, []byte(document(t, behaviours)), 0o644); err != nil {
				t.Error(err)
			}
		}
	})
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m.name, m.flags...)
			for i := range behaviours {
				b := &behaviours[i]
				t.Run(b.name, func(t *testing.T) {
					s.t = t
					s.play(b)
					played.Add(1)
				})
			}
		})
	}
}

// play carries out the steps of a behaviour. What comes from outside is tried
// in every mode, what comes from sockets in the first.
func (s *stage) play(b *behaviour) {
	s.flows = map[string]*flow{}
	defer s.endFlows()
	defer s.agentsAsEver()
	for _, st := range b.steps {
		if st.who != "" && !st.fromWire() && s.mode != modes[0].name {
			continue
		}
		switch st.verb {
		case "apply":
			var text []string
			for _, name := range st.args {
				if b.files[name] == "" {
					s.t.Fatalf("line %d: no file %s", st.line, name)
				}
				text = append(text, b.files[name])
			}
			s.apply(strings.Join(text, "---\n"))
		case "keeps":
			defer s.keep(st)()
		case "stays":
			defer s.stay(st)()
		case "gain":
			defer s.gain(st.args[0])()
		case "agents":
			s.agentsWith(st.args)
		case "nft":
			defer s.filter(b.files[st.args[0]])()
		case "restart":
			s.restart(0)
		case "flow":
			if err := world.Wait(soon, func() error { return s.try(st) }); err != nil {
				s.t.Errorf("line %d: %s: %v", st.line, st.text, err)
			}
		default:
			// The agents take up a change within a second: what must be true
			// is waited for.
			err := world.Wait(patience, func() error { return s.try(st) })
			if err == nil && negative[st.verb] {
				err = s.try(st)
			}
			if err != nil {
				s.t.Errorf("line %d: %s: %v", st.line, st.text, err)
			}
		}
	}
}

const (
	patience = 8 * time.Second
	soon     = time.Second
	hostPort = 7070 // of the process "host" on every address of the node "here"
)
