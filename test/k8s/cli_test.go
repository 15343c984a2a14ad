// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"encoding/json"
	"os/exec"
	"slices"

	"portolan.dev/portolan/test/k8s/cluster"
)

// listed is what the tests read of "portolan services -o json".
type listed struct {
	Items []listedService
}

type listedService struct {
	Namespace, Name string
	Headless        bool
	ExternalName    string
	ClusterIPs      []string
	Endpoints       []struct{ Address string }
}

// portolanCommand makes a command of the CLI for a node's agent.
func (s *space) portolanCommand(n *cluster.Node, args ...string) *exec.Cmd {
	args = append(args, "--bpffs-root", n.BPFFS(), "--socket", n.Socket())
	return exec.CommandContext(s.ctx, s.cli, args...)
}

// listedService asks a node's agent about one Service of the scenario.
func (s *space) listedService(n *cluster.Node, name string) listedService {
	s.t.Helper()
	out, err := s.portolanCommand(n, "services", s.ns+"/"+name, "-o", "json").Output()
	if err != nil {
		s.t.Fatalf("list service %s on %s: %v", name, n.Name(), err)
	}
	var list listed
	s.must(json.Unmarshal(out, &list))
	if len(list.Items) != 1 {
		s.t.Fatalf("list service %s on %s: got %s, want one", name, n.Name(), out)
	}
	return list.Items[0]
}

// listsHeadless wants a Service shown as headless, with its one endpoint.
func (s *space) listsHeadless(name, endpoint string) {
	s.t.Helper()
	for _, n := range s.Nodes {
		svc := s.listedService(n, name)
		var addrs []string
		for _, e := range svc.Endpoints {
			addrs = append(addrs, e.Address)
		}
		named := slices.ContainsFunc(addrs, func(a string) bool { return a == endpoint || a == hostPort(endpoint, 8080) })
		if !svc.Headless || !named {
			s.t.Errorf("%s lists %+v, want it headless with endpoint %s", n.Name(), svc, endpoint)
		}
	}
}

// listsExternalName wants a Service shown with the name it stands for.
func (s *space) listsExternalName(name, target string) {
	s.t.Helper()
	for _, n := range s.Nodes {
		if svc := s.listedService(n, name); svc.ExternalName != target || len(svc.ClusterIPs) > 0 {
			s.t.Errorf("%s lists %+v, want external name %s and no address", n.Name(), svc, target)
		}
	}
}

func kernelHoldsWhatIsCompiled(s *space) {
	if !s.portolan() {
		s.t.Skip("asks the agent's own command line")
	}
	s.pod("one", nil)
	s.handMade("web", "one") // The agents answer, so they have synced.
	for _, n := range s.Nodes {
		if out, err := s.portolanCommand(n, "verify").CombinedOutput(); err != nil {
			s.t.Errorf("verify %s: %v\n%s", n.Name(), err, out)
		}
		if out, err := s.portolanCommand(n, "status").CombinedOutput(); err != nil {
			s.t.Errorf("status of %s: %v\n%s", n.Name(), err, out)
		}
	}
}
