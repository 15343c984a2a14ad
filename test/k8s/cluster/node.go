// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"portolan.dev/portolan/test/k8s/controlplane"
	"portolan.dev/portolan/test/k8s/kubelet"
	"portolan.dev/portolan/test/world"
)

// probeLimit is how long a pod's readiness probe may fail.
const probeLimit = 60 * time.Second

// Node is a node of the cluster. It is the kubelet's Runtime.
type Node struct {
	*world.Node
	cluster   *Cluster
	host      *world.Place // where the dataplane runs
	dataplane *world.Process
}

func (c *Cluster) newNode(name string) (*Node, error) {
	n, err := c.World.AddNode(name)
	if err != nil {
		return nil, err
	}
	host, err := n.Host("dataplane")
	if err != nil {
		return nil, err
	}
	return &Node{Node: n, cluster: c, host: host}, nil
}

// sandbox is a pod of the world that stands for a pod of the cluster.
type sandbox struct{ pod *world.Pod }

// Run makes a pod whose containers run a command if they have one, and
// otherwise serve on each of their ports, under the pod's name, followed by
// "/CONTAINER" in a pod of several containers.
func (n *Node) Run(ctx context.Context, pod *corev1.Pod) (kubelet.Sandbox, error) {
	p, err := n.AddPod(pod.Namespace + "." + pod.Name)
	if err != nil {
		return nil, err
	}
	for i := range pod.Spec.Containers {
		if err := runContainer(ctx, p, pod, &pod.Spec.Containers[i]); err != nil {
			return nil, errors.Join(err, p.Remove())
		}
	}
	return sandbox{p}, nil
}

func (s sandbox) Addresses() []netip.Addr { return []netip.Addr{s.pod.IPv4(), s.pod.IPv6()} }

func (s sandbox) Stop() error { return s.pod.Remove() }

func runContainer(ctx context.Context, p *world.Pod, pod *corev1.Pod, container *corev1.Container) error {
	if len(container.Command) > 0 {
		proc, err := p.Start(container.Command[0], append(container.Command[1:], container.Args...)...)
		if err != nil {
			return err
		}
		return waitReady(ctx, p, proc, container.ReadinessProbe)
	}
	name := pod.Name
	if len(pod.Spec.Containers) > 1 {
		name += "/" + container.Name
	}
	var listeners []string
	for _, port := range container.Ports {
		listeners = append(listeners, fmt.Sprintf("%s:%d", strings.ToLower(string(port.Protocol)), port.ContainerPort))
	}
	_, err := p.Serve(name, listeners...)
	return err
}

// waitReady asks the container's HTTP readiness probe until it answers 200.
func waitReady(ctx context.Context, p *world.Pod, proc *world.Process, probe *corev1.Probe) error {
	if probe == nil || probe.HTTPGet == nil {
		return nil
	}
	url := fmt.Sprintf("http://%s/%s",
		netip.AddrPortFrom(p.IPv4(), uint16(probe.HTTPGet.Port.IntValue())),
		strings.TrimPrefix(probe.HTTPGet.Path, "/"))
	client := &http.Client{
		Timeout:   time.Second,
		Transport: &http.Transport{DialContext: dialer(p.Namespace), DisableKeepAlives: true},
	}
	err := world.Wait(probeLimit, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait until ready: %w; output:\n%s", err, proc.Output())
	}
	return nil
}

// starter starts commands in a place.
func starter(p *world.Place) controlplane.StartFunc {
	return func(cmd *exec.Cmd) (controlplane.Child, error) { return p.StartCmd(cmd) }
}
