// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"portolan.dev/portolan/test/k8s/controlplane"
	"portolan.dev/portolan/test/world"
)

// Dataplane is a program that makes Services work on a node.
type Dataplane struct {
	// Name is how results and skipped tests call it.
	Name string
	// Binary is the program.
	Binary string
	// Args returns its arguments for a node.
	Args func(n *Node, kubeconfig string) []string
}

// Agent is the Portolan agent at binary.
func Agent(binary string) Dataplane {
	return Dataplane{
		Name:   "portolan",
		Binary: binary,
		Args: func(n *Node, kubeconfig string) []string {
			return append(n.AgentFlags(),
				"--kubeconfig", kubeconfig,
				"--cluster-cidr", controlplane.ClusterCIDR4+","+controlplane.ClusterCIDR6)
		},
	}
}

// KubeProxy is kube-proxy in its nftables mode, from the kcp binary.
func KubeProxy(kcp string) Dataplane {
	return Dataplane{
		Name:   "kube-proxy",
		Binary: kcp,
		Args: func(n *Node, kubeconfig string) []string {
			return []string{
				"kube-proxy",
				"--kubeconfig=" + kubeconfig,
				"--proxy-mode=nftables",
				"--hostname-override=" + n.Name(),
				"--cluster-cidr=" + controlplane.ClusterCIDR4 + "," + controlplane.ClusterCIDR6,
				"--detect-local-mode=ClusterCIDR",
				// A pod's answer to a pod on the same bridge would never meet
				// the node's connection tracking without it.
				"--masquerade-all",
				// These sysctls are read-only or absent in a namespace.
				"--conntrack-max-per-core=0",
				"--conntrack-tcp-timeout-established=0",
				"--conntrack-tcp-timeout-close-wait=0",
				"--healthz-bind-address=",
				"--metrics-bind-address=",
			}
		},
	}
}

// StartDataplane starts d on the node and does not wait for it to be ready.
func (n *Node) StartDataplane(d Dataplane) error {
	proc, err := n.host.Start(d.Binary, d.Args(n, n.cluster.Plane.Kubeconfig())...)
	if err != nil {
		return err
	}
	n.dataplane = proc
	return nil
}

// KillDataplane ends the node's dataplane with SIGKILL and waits for it.
func (n *Node) KillDataplane() {
	if n.dataplane != nil {
		n.dataplane.Kill()
	}
}

// DataplaneProcess is the dataplane's present or last process; nil before the
// first start.
func (n *Node) DataplaneProcess() *world.Process { return n.dataplane }

// DataplanePeakRSS is the largest resident set that the dataplane's process
// has had, in bytes. The process must be running.
func (n *Node) DataplanePeakRSS() (uint64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(n.dataplane.PID()), "status"))
	if err != nil {
		return 0, fmt.Errorf("read peak memory of the dataplane: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, "VmHWM:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read VmHWM: %w", err)
		}
		return kib << 10, nil
	}
	return 0, errors.New("read VmHWM: the process is a zombie or a kernel thread")
}
