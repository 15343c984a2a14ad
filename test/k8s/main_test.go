// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1. Builds Kubernetes on the first run.

// Package k8s_test checks Portolan end to end: a real API server and the real
// Service controllers above it, real connections below it. It has its own
// module so that Kubernetes' dependencies stay out of the agent's.
//
// One cluster serves all scenarios, each in a Kubernetes namespace of its own:
//
//	control plane  192.168.100.101
//	node1          192.168.100.1    pods 10.244.1.0/24  fd00:10:244:1::/64
//	node2          192.168.100.2    pods 10.244.2.0/24  fd00:10:244:2::/64
//	Services       10.96.0.0/16     fd00:10:96::/112
package k8s_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"portolan.dev/portolan/test/k8s/cluster"
	"portolan.dev/portolan/test/world"
)

// dataplaneEnv chooses what runs on the nodes: "portolan", the default, or
// "kube-proxy", which shows that an expectation is Kubernetes' own.
const dataplaneEnv = "PORTOLAN_TEST_DATAPLANE"

func TestMain(m *testing.M) {
	world.Main()
	resolverMain()
	os.Exit(m.Run())
}

// scenario is one behaviour. Its name is a sentence.
type scenario struct {
	name string
	run  func(*space)
}

func TestServices(t *testing.T) {
	world.RequireRoot(t)
	f := newFixture(t)
	// The group returns when all its parallel scenarios have ended.
	t.Run("calm", func(t *testing.T) {
		for _, sc := range calmScenarios() {
			t.Run(sc.name, func(t *testing.T) {
				t.Parallel()
				sc.run(f.newSpace(t))
			})
		}
	})
	for _, sc := range append(disturbingScenarios(), outageScenarios()...) {
		t.Run(sc.name, func(t *testing.T) { sc.run(f.newSpace(t)) })
	}
}

// disturbingScenarios close nodes to new pods, one after the other.
func disturbingScenarios() []scenario {
	return []scenario{
		{"a drain of each node fails no request", drainFailsNoRequest},
		{"the health check port follows the node's own pods", healthCheckPortFollowsLocalPods},
	}
}

// calmScenarios leave the control plane and the agents alone, so they may run
// at the same time.
func calmScenarios() []scenario {
	return []scenario{
		{"a rollout fails no request", rolloutFailsNoRequest},
		{"scaling up and down fails no request", scalingFailsNoRequest},
		{"a Service that goes to zero and back disturbs no other", scaledToZeroAndBackDisturbsNobody},
		{"a Service created again at its old address answers there", recreatedServiceKeepsItsAddress},
		{"a conflict is told by an Event on the Service that loses", conflictIsToldByAnEvent},
		{"a NodePort that a socket holds is told by an Event on the Service", heldNodePortIsToldByAnEvent},
		{"the last pod keeps receiving while it terminates", lastPodReceivesWhileTerminating},
		{"scaled to zero a Service refuses at once and comes back", scaledToZeroRefuses},
		{"CoreDNS answers a pod that knows only its ClusterIP", coreDNSAnswers},
		{"a ClusterIP spreads connections over three replicas", clusterIPSpreads},
		{"a port name leads to the number each pod gives it", namedPortsDifferPerPod},
		{"one number serves TCP and UDP apart", protocolsAreApart},
		{"ports come and go", portsComeAndGo},
		{"a selector counts with all its labels and can change", selectorChanges},
		{"a Service without a selector follows hand-made slices", handMadeSlices},
		{"headless and ExternalName Services translate nothing", headlessIsNotTranslated},
		{"a NodePort answers the node's own sockets", nodePortAnswersNode},
		{"load balancer and external addresses answer in the cluster", externalAddressesAnswer},
		{"dual stack answers in both families in either order", dualStackAnswers},
		{"a Service created again answers, its old address does not", serviceCreatedAgain},
		{"a client with affinity stays with its endpoint", affinityHolds},
		{"a Local policy uses the node's own endpoints only", localPolicy},
		{"a Service of another proxy is left alone", otherProxysService},
		{"a slice labelled headless is not used", headlessSlice},
		{"an unassigned service address fails", unassignedAddressFails},
	}
}

// outageScenarios take something down that all others need.
func outageScenarios() []scenario {
	return []scenario{
		{"traffic outlives the API server, and changes follow its return", apiServerRestarts},
		{"traffic outlives a minute without a way to the API server, and changes follow", nodesAreCutOff},
		{"an expired resource version loses no change", resourceVersionExpires},
		{"traffic outlives the agent, and a new agent catches up", agentRestarts},
		{"an agent that has synced nothing removes nothing", unsyncedAgentRemovesNothing},
		// Last, so that it judges what all the others have left.
		{"the kernel holds what the agents have compiled", kernelHoldsWhatIsCompiled},
	}
}

// fixture is the cluster that all scenarios share.
type fixture struct {
	*cluster.Cluster
	dataplane cluster.Dataplane
	cli       string         // bin/portolan; empty under kube-proxy
	pods      []*world.Probe // a client pod on each node
	hosts     []*world.Probe // a host process on each node
	outside   *world.Probe   // a client that is neither
}

func newFixture(t *testing.T) *fixture {
	ctx := context.Background()
	kcp := must(cluster.BuildControlPlane())(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg := cluster.Config{ControlPlane: kcp, Nodes: []string{"node1", "node2"}, Log: log}
	var dataplane cluster.Dataplane
	var cli string
	switch name := os.Getenv(dataplaneEnv); name {
	case "", "portolan":
		dataplane = cluster.Agent(must(cluster.BuildAgent())(t))
		cli = must(cluster.BuildCLI())(t)
	case "kube-proxy":
		dataplane = cluster.KubeProxy(kcp)
	default:
		t.Fatalf("%s=%q: use portolan or kube-proxy", dataplaneEnv, name)
	}
	c := must(cluster.Start(ctx, cfg))(t)
	f := &fixture{Cluster: c, dataplane: dataplane, cli: cli}
	t.Cleanup(func() { f.close(t) })
	for _, n := range c.Nodes {
		if err := n.StartDataplane(dataplane); err != nil {
			t.Fatal(err)
		}
		pod := must(n.AddPod("client-" + n.Name()))(t)
		f.pods = append(f.pods, must(pod.Probe())(t))
		host := must(n.Host("client"))(t)
		f.hosts = append(f.hosts, must(host.Probe())(t))
	}
	f.outside = must(c.Outside.Probe())(t)
	return f
}

func (f *fixture) close(t *testing.T) {
	if t.Failed() {
		for _, n := range f.Nodes {
			if p := n.DataplaneProcess(); p != nil {
				t.Logf("%s on %s:\n%s", f.dataplane.Name, n.Name(), tail(p.Output(), 60))
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// must turns a value and an error into the value, failing the test otherwise.
func must[V any](v V, err error) func(testing.TB) V {
	return func(tb testing.TB) V { return world.Must(v, err)(tb) }
}
