// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"portolan.dev/portolan/test/world"
)

// objects holds what the agent reads (manifests) and the files that replace
// some of it later (changes). manifests/node.yaml has the address plan.
//
//go:embed manifests changes
var objects embed.FS

// patience is how long the demo waits for anything to come true.
const patience = 10 * time.Second

// demo is the state of one run.
type demo struct {
	*screen
	ctx                context.Context // done when the demo is to end
	agentPath, cliPath string

	world     *world.World
	node      *world.Node
	pods      map[string]*world.Pod
	client    *world.Probe // in the client pod
	host      *world.Probe // a host-network process
	outside   *world.Probe // on a machine that is no part of the cluster
	agent     *world.Process
	manifests string // the directory the agent watches
	hammered  int    // requests made while things changed
	inShell   atomic.Bool
}

// replica is a pod with a server: the last number of its addresses, and where
// it listens.
type replica struct {
	name   string
	number int
	listen []string
}

func replicas() []replica {
	http, dns, sql := []string{"http:8080"}, []string{"udp:5353", "tcp:5353"}, []string{"tcp:5432"}
	return []replica{
		{"web-1", 11, http}, {"web-2", 12, http}, {"web-3", 13, http},
		{"dns-1", 21, dns}, {"dns-2", 22, dns}, {"dns-3", 23, nil}, // never gets ready
		{"db-0", 31, sql}, {"db-1", 32, sql},
		{"shop-1", 41, http}, {"shop-2", 42, http},
	}
}

// build makes the node, its pods with their servers, and the clients.
func (d *demo) build() error {
	var err error
	if d.node, err = d.world.AddNode("demo"); err != nil {
		return err
	}
	d.pods = map[string]*world.Pod{}
	for _, r := range replicas() {
		if err := d.addReplica(r); err != nil {
			return err
		}
	}
	pod, err := d.addPod("client", 2)
	if err != nil {
		return err
	}
	if d.client, err = pod.Probe(); err != nil {
		return err
	}
	place, err := d.node.Host("operator")
	if err != nil {
		return err
	}
	if d.host, err = place.Probe(); err != nil {
		return err
	}
	return d.addOutside()
}

// addOutside makes a machine that sends to load balancer addresses by the node,
// as a router would that has learnt them from it.
func (d *demo) addOutside() error {
	machine, err := d.world.AddHost("outside")
	if err != nil {
		return err
	}
	if err := machine.RouteBy(d.node, "203.0.113.0/24"); err != nil {
		return err
	}
	d.outside, err = machine.Probe()
	return err
}

func (d *demo) addReplica(r replica) error {
	pod, err := d.addPod(r.name, r.number)
	if err != nil {
		return err
	}
	_, err = pod.Serve(r.name, r.listen...)
	return err
}

// addPod makes a pod whose addresses end in number, written the same way in
// both families.
func (d *demo) addPod(name string, number int) (*world.Pod, error) {
	v4, err := netip.ParseAddr(fmt.Sprintf("10.244.1.%d", number))
	if err != nil {
		return nil, err
	}
	v6, err := netip.ParseAddr(fmt.Sprintf("fd00:10:244:1::%d", number))
	if err != nil {
		return nil, err
	}
	pod, err := d.node.AddPod(name, world.PodConfig{IPv4: v4, IPv6: v6})
	d.pods[name] = pod
	return pod, err
}

// writeManifests fills the directory that the agent will watch.
func (d *demo) writeManifests() error {
	d.manifests = filepath.Join(d.world.Dir(), "manifests")
	if err := os.Mkdir(d.manifests, 0o755); err != nil {
		return err
	}
	return fs.WalkDir(objects, "manifests", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return d.replace(filepath.Base(path), path)
	})
}

// replace puts an embedded file into the watched directory in one step, so
// that the agent never reads half of it.
func (d *demo) replace(name, from string) error {
	data, err := objects.ReadFile(from)
	if err != nil {
		return err
	}
	path := filepath.Join(d.manifests, name)
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// startAgent starts an agent as a host-network process of the node.
func (d *demo) startAgent(cgroup string) error {
	place, err := d.node.Host(cgroup)
	if err != nil {
		return err
	}
	args := append([]string{
		"--manifests", d.manifests,
		"--service-cidr", "10.96.0.0/16,fd00:10:96::/112",
	}, d.node.AgentFlags()...)
	d.agent, err = place.Start(d.agentPath, args...)
	return err
}

// agentLogs returns the end of the agent's output, for a demo that failed.
func (d *demo) agentLogs() string {
	if d.agent == nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(d.agent.Output()), "\n")
	if len(lines) > 12 {
		lines = lines[len(lines)-12:]
	}
	return "the agent's last lines:\n  " + strings.Join(lines, "\n  ") + "\n"
}

// cli runs the operator's command and returns what it printed, and how it
// ended.
func (d *demo) cli(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	args = append(args, "--bpffs-root", d.node.BPFFS(), "--socket", d.node.Socket())
	cmd := exec.CommandContext(ctx, d.cliPath, args...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("portolan %s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

// until waits for f to return true. It gives up when the demo ends, when the
// agent has ended, or after patience with what was waited for.
func (d *demo) until(what string, f func() (bool, error)) error {
	return d.wait(what, d.agent.Done(), f)
}

// wait is until with a channel that ends the wait when closed.
func (d *demo) wait(what string, ended <-chan struct{}, f func() (bool, error)) error {
	deadline := time.Now().Add(patience)
	for {
		done, err := f()
		switch {
		case err != nil:
			return fmt.Errorf("wait until %s: %w", what, err)
		case done:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("wait until %s: not within %v", what, patience)
		}
		select {
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-ended:
			return fmt.Errorf("wait until %s: the agent has ended", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
