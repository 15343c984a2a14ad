// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// noon is now in all tests.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// command runs portolan with a place of its own unless args name another.
type command struct {
	t      *testing.T
	socket string
	bpffs  string
}

func newCommand(t *testing.T) *command {
	dir := t.TempDir()
	return &command{t, filepath.Join(dir, "agent.sock"), filepath.Join(dir, "bpf")}
}

// run wants an exit code and returns what was printed.
func (c *command) run(code int, args ...string) (out, errOut string) {
	c.t.Helper()
	var stdout, stderr bytes.Buffer
	env := &environment{in: strings.NewReader("y\n"), out: &stdout, errOut: &stderr, now: func() time.Time { return noon }}
	got := run(env, append([]string{"--socket", c.socket, "--bpffs-root", c.bpffs}, args...))
	if got != code {
		c.t.Errorf("portolan %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, &stdout, &stderr)
	}
	return stdout.String(), stderr.String()
}

// agent serves objects until the test ends.
func (c *command) agent(objects api.Provider) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	handler := api.Handler(objects)
	go func() { done <- api.Serve(ctx, c.socket, handler) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	})
	for client := api.NewClient(c.socket, 5*time.Second); ; {
		if _, err := client.Status(); err == nil {
			return
		} else if !errors.Is(err, api.ErrNoAgent) {
			c.t.Fatal(err)
		}
	}
}

// objects are what an agent tells.
type objects struct {
	status   api.Status
	services api.ServiceList
	tables   api.Tables
}

func (o *objects) Status() api.Status        { return o.status }
func (o *objects) Services() api.ServiceList { return o.services }
func (o *objects) Tables() api.Tables        { return o.tables }

// whole is an agent to which nothing happened.
func whole() *objects {
	return &objects{
		status: api.Status{
			Meta: api.Meta{APIVersion: api.Version, Kind: "Status"}, Version: "v0.1.0", PID: 4711, Started: noon.Add(-76 * time.Hour),
			Node: "worker-2", Zone: "eu-1a", Kernel: "6.1.90", Missing: []string{"bpf_sock_destroy (Linux 6.5): they are closed one by one through SOCK_DIAG"},
			IgnoredConfig: []string{"mode (Services are served by BPF tables, whatever the mode)"},
			Source:        "kubeconfig /etc/portolan/kubeconfig",
			Resources:     []source.ResourceStatus{{Resource: "services", Connected: true, Since: noon.Add(-76 * time.Hour), LastEvent: noon.Add(-time.Second), Objects: 6}},
			Synced:        true, CgroupRoot: "/sys/fs/cgroup",
			Hooks:    []loader.Attachment{{Hook: "cgroup/connect4", Device: "cgroup 1", Mode: "link", Attached: true}, {Hook: "cgroup/connect6", Device: "cgroup 1", Mode: "link", Attached: true}},
			Services: map[string]int{"ClusterIP": 3, "Headless": 1, "ExternalName": 1, "LoadBalancer": 1},
			Backends: api.Backends{Active: 9, Draining: 2}, Programming: api.Programming{Changes: 41, P50: 0.0021, P99: 0.0113, Last: noon.Add(-2 * time.Second)},
			Tables:   []reconcile.Usage{{Table: "frontends4", Used: 256, Capacity: 1024}},
			Denied:   []api.Denied{{Reason: "no-endpoint", Errno: "ECONNREFUSED", Count: 12}, {Reason: "source-range", Errno: "EACCES"}},
			Problems: []service.Problem{}, Degraded: []string{},
		},
		services: api.ServiceList{Meta: api.Meta{APIVersion: api.Version, Kind: "ServiceList"}, Items: someServices()},
	}
}

// ailing is an agent that lost the API server and read an invalid Service.
func ailing() *objects {
	o := whole()
	o.status.Resources[0].Connected = false
	o.status.Resources[0].Error = "connection refused"
	o.status.Hooks[1].Attached, o.status.Hooks[1].Error = false, "no link is pinned"
	o.status.Problems = []service.Problem{{Object: "Service prod/cart", Reason: service.ReasonInvalidPort, Message: "port 70000 is none: use 1 to 65535"}}
	o.status.Degraded = []string{"services are not followed since 11:59:00: connection refused", "1 problems in what is to be served"}
	return o
}

func someServices() []api.Service {
	created := noon.Add(-50 * time.Hour)
	in := func(addr, target, node string) api.Endpoint {
		return api.Endpoint{Address: addr, PortName: "http", Protocol: "TCP", Target: target, Node: node, Zone: "eu-1a", Ready: true, Serving: true, InCluster: true, Reason: "in: ready"}
	}
	out := in("10.244.1.13:8080", "web-3", "worker-2")
	out.Ready, out.InCluster, out.Reason = false, false, "out: not ready"
	named := in("10.244.2.9", "db-0", "worker-3")
	named.InCluster, named.PortName, named.Protocol, named.Reason = false, "", "", "published by DNS: ready"
	admin := in("10.244.1.11:9090", "web-1", "worker-2")
	admin.PortName = "admin"
	tcp := func(name string, port, nodePort uint16) api.Port {
		return api.Port{Name: name, Port: port, Protocol: "TCP", NodePort: nodePort, TargetPort: name}
	}
	return []api.Service{
		{Namespace: "default", Name: "db", Type: "ClusterIP", Headless: true, Ports: []api.Port{}, Selector: "app=db", Created: created, Endpoints: []api.Endpoint{named}},
		{Namespace: "default", Name: "web", Type: "ClusterIP", ClusterIPs: []string{"10.96.0.10", "fd00::10"}, Ports: []api.Port{tcp("http", 80, 0), tcp("admin", 9090, 0)}, Selector: "app=web", Created: created,
			Endpoints: []api.Endpoint{in("10.244.1.11:8080", "web-1", "worker-2"), in("10.244.1.12:8080", "web-2", "worker-3"), out, admin}},
		{Namespace: "default", Name: "wiki", Type: "ExternalName", ExternalName: "wiki.example.org", Ports: []api.Port{}, Created: created, Endpoints: []api.Endpoint{}},
		{Namespace: "prod", Name: "cart", Type: "ClusterIP", ClusterIPs: []string{"10.96.0.20"}, Ports: []api.Port{tcp("", 80, 0)}, Created: created, Endpoints: []api.Endpoint{}},
		{Namespace: "prod", Name: "mesh", Type: "ClusterIP", ServedBy: "other-proxy", ClusterIPs: []string{"10.96.0.30"}, Ports: []api.Port{tcp("", 80, 0)}, Created: created, Endpoints: []api.Endpoint{}},
		{Namespace: "prod", Name: "shop", Type: "LoadBalancer", ClusterIPs: []string{"10.96.0.40"}, Ports: []api.Port{tcp("http", 443, 30443)}, Created: created, Endpoints: []api.Endpoint{in("10.244.1.40:8443", "shop-1", "worker-2")}},
	}
}

// golden compares with a file of testdata; UPDATE=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (UPDATE=1 writes it anew): got\n%s\nwant\n%s", path, got, want)
	}
}
