// SPDX-License-Identifier: Apache-2.0

// Command kcp is a whole Kubernetes control plane in one binary: etcd,
// kube-apiserver, kube-controller-manager, kube-proxy and CoreDNS, built from
// their own Go modules and chosen by the first argument. The tests run one
// process for each: the components share process-global state (metrics
// registries, feature gates, klog flags) and would trip over each other in one.
//
// It may import the upstream components only. It has its own go.mod so that
// their version pins and replace lines reach neither the agent nor the tests,
// and so that a change to Portolan never makes this binary stale.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

const usage = `usage: kcp COMPONENT [ARG...]

components:
  etcd DIR CLIENT-URL PEER-URL   a single-member etcd without fsync
  kube-apiserver                 takes the component's own flags
  kube-controller-manager        takes the component's own flags
  kube-proxy                     takes the component's own flags
  coredns                        takes the component's own flags`

func main() {
	if len(os.Args) < 2 {
		fatal(fmt.Errorf("%s", usage))
	}
	name, args := os.Args[1], os.Args[2:]
	// Components read os.Args themselves (cobra, CoreDNS's flag package).
	os.Args = append([]string{name}, args...)
	switch name {
	case "etcd":
		if err := runEtcd(args); err != nil {
			fatal(err)
		}
	case "coredns":
		runCoreDNS()
	case "kube-apiserver":
		runCobra(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		runCobra(kcm.NewControllerManagerCommand())
	case "kube-proxy":
		runCobra(kubeproxy.NewProxyCommand())
	default:
		fatal(fmt.Errorf("unknown component %q\n%s", name, usage))
	}
}

// runCobra runs an upstream component and exits with its code.
func runCobra(cmd *cobra.Command) {
	os.Exit(cli.Run(cmd))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "kcp:", err)
	os.Exit(1)
}
