// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2, Linux 6.1 and iptables.

// Package neighbours_test runs agents beside what else changes packets on a
// node: the CNI plugins bridge, host-local, portmap and ptp, built from their
// own Go modules, and the rules of a proxy that was there before.
//
//	client ── switch ─┬─ node1   bridge + portmap, ipMasq   pods near1, near2
//	                  └─ node2   ptp + portmap, ipMasq      pods far1, far2
//
// Nothing is pretended: pods get their links, addresses and rules by CNI's
// ADD and lose them by DEL, agents read manifests, and each check is a
// connection of a process. It imports test/world and pkg/api, for its client.
package neighbours_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/test/world"
)

// agentEnv names an agent to use instead of building it.
const agentEnv = "PORTOLAN_AGENT"

// agentPath and pluginDir are set by TestMain.
var agentPath, pluginDir string

func TestMain(m *testing.M) {
	world.Main()
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// build makes the agent and the plugins, which go.mod lists as its tools.
func build() error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	pluginDir = filepath.Join(root, "build", "cni")
	if err := os.MkdirAll(pluginDir, 0o755); err != nil {
		return err
	}
	if err := goBuild(".", "-o", pluginDir+"/", "tool"); err != nil {
		return err
	}
	if agentPath = os.Getenv(agentEnv); agentPath != "" {
		return nil
	}
	agentPath = filepath.Join(root, "bin", "portolan-agent")
	return goBuild(root, "-o", agentPath, "./cmd/portolan-agent")
}

func goBuild(dir string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build in %s: %w\n%s", dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// stage is a client outside and a cluster of two nodes.
type stage struct {
	t         *testing.T
	world     *world.World
	near, far *node
	host      *world.Host
	client    *world.Probe
	manifests string
	agentArgs []string
}

// node is a node whose pods' network a CNI plugin lays.
type node struct {
	*world.Node
	stage   *stage
	network network
	agent   *world.Process
}

// mode is a way in which packets from outside are taken.
type mode struct {
	name string
	args []string
}

var modes = []mode{
	{"tc", nil},
	{"xdp generic", []string{"--xdp", "generic"}},
	{"xdp native", []string{"--xdp", "native"}},
}

func newStage(t *testing.T, m mode) *stage {
	t.Helper()
	s := &stage{t: t, world: world.NewT(t)}
	s.agentArgs = append([]string{
		"--service-cidr", "10.96.0.0/16,fd00:10:96::/112",
		"--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48",
		// These plugins masquerade what pods send to pods elsewhere and leave it
		// its source port: ours are to be outside pods' ip_local_port_range.
		"--masquerade-ports", "61000-65535",
	}, m.args...)
	s.near, s.far = s.node("node1", bridge), s.node("node2", ptp)
	s.host = world.Must(s.world.AddHost("client"))(t)
	s.routeBy(s.near, "203.0.113.0/24", "2001:db8:1b::/64")
	s.world.LikeHardware(t, s.near.Namespace, s.far.Namespace, s.host.Namespace)
	s.client = world.Must(s.host.Probe())(t)
	s.manifests = filepath.Join(s.world.Dir(), "manifests")
	if err := os.Mkdir(s.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.logDenied)
	s.write("nodes.yaml", nodeObject(s.near)+nodeObject(s.far))
	return s
}

// node makes a node without the bridge that the world has laid: the plugins
// lay what they need.
func (s *stage) node(name string, network func(*node) network) *node {
	s.t.Helper()
	n := &node{Node: world.Must(s.world.AddNode(name))(s.t), stage: s}
	err := n.Do(func() error {
		link, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	n.network = network(n)
	return n
}

// routeBy makes the client send to networks by way of a node.
func (s *stage) routeBy(n *node, networks ...string) {
	s.t.Helper()
	if err := s.host.RouteBy(n.Node, networks...); err != nil {
		s.t.Fatal(err)
	}
}

// write puts a file of objects where the agents read them, in one step.
func (s *stage) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.manifests, name)
	err := os.WriteFile(path+".new", []byte(text), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// start starts an agent on both nodes and waits until they serve.
func (s *stage) start() {
	s.t.Helper()
	for _, n := range []*node{s.near, s.far} {
		place := world.Must(n.Host("agent"))(s.t)
		args := append([]string{"--manifests", s.manifests}, s.agentArgs...)
		n.agent = world.Must(place.Start(agentPath, append(args, n.AgentFlags()...)...))(s.t)
	}
	for _, n := range []*node{s.near, s.far} {
		err := world.Wait(startLimit, func() error {
			status, err := n.api().Status()
			switch {
			case err != nil:
				return err
			case !status.Synced || len(status.Degraded) > 0:
				return fmt.Errorf("%s: synced %v, degraded %v, problems %v", n.Name(), status.Synced, status.Degraded, status.Problems)
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// startLimit is what an agent may take to load its programs and to serve,
// which a busy machine makes long.
const startLimit = time.Minute

// logDenied tells what the agents' programs have let through to nobody, for a
// test that failed.
func (s *stage) logDenied() {
	if !s.t.Failed() {
		return
	}
	for _, n := range []*node{s.near, s.far} {
		if status, err := n.api().Status(); err == nil {
			s.t.Logf("%s: denied %+v, problems %+v", n.Name(), status.Denied, status.Problems)
		}
	}
}

func (n *node) api() *api.Client { return api.NewClient(n.Socket(), 10*time.Second) }

// serve makes the Services and waits until every agent has their endpoints in
// its tables.
func (s *stage) serve(services ...svc) {
	s.t.Helper()
	var text strings.Builder
	for _, x := range services {
		text.WriteString(x.objects())
	}
	s.write("services.yaml", text.String())
	for _, n := range []*node{s.near, s.far} {
		if n.agent == nil {
			continue
		}
		world.Eventually(s.t, func() error { return n.has(services) })
	}
}

// has says whether the agent's tables lead to the Services' pods and no other.
func (n *node) has(services []svc) error {
	tables, err := n.api().Tables()
	if err != nil {
		return err
	}
	found := map[string][]string{}
	for _, f := range tables.Frontends {
		found[f.Service+" "+f.Address+" "+f.Protocol] = f.Internal.Backends
	}
	for _, x := range services {
		for _, family := range []string{"IPv4", "IPv6"} {
			want := x.backends(family)
			addr := x.clusterIPs()[family]
			for _, proto := range []string{"TCP", "UDP"} {
				key := fmt.Sprintf("default/%s %s %s", x.name, netip.AddrPortFrom(addr, 80), proto)
				have, ok := found[key]
				if slices.Sort(have); !ok || !slices.Equal(have, want) {
					return fmt.Errorf("%s: %s leads to %v, want %v", n.Name(), key, have, want)
				}
			}
		}
	}
	return nil
}

// served dials an address many times and wants every answer, and from exactly
// these pods.
func served(t *testing.T, from *world.Probe, proto, addr string, pods ...*pod) {
	t.Helper()
	const many = 60 // the chance that random misses one of four pods is 1e-7
	report := world.Must(from.DialMany(proto, addr, many))(t)
	if err := judge(report, pods); err != nil {
		t.Errorf("%s %s: %v", proto, addr, err)
	}
}

func judge(report world.Report, pods []*pod) error {
	if report.Failed > 0 || report.Total == 0 {
		return fmt.Errorf("%d of %d failed, the first by %v", report.Failed, report.Total, report.Failures[:min(1, len(report.Failures))])
	}
	var missing []error
	for _, p := range pods {
		if report.Backends[p.Name()] == 0 {
			missing = append(missing, fmt.Errorf("no answer of %s, but %v", p.Name(), report.Backends))
		}
	}
	if len(report.Backends) > len(pods) {
		missing = append(missing, fmt.Errorf("answers %v", report.Backends))
	}
	return errors.Join(missing...)
}

var protocols = []string{"tcp", "udp"}
