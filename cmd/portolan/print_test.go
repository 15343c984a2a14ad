// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"portolan.dev/portolan/pkg/api"
)

func TestOutputReadsAsItAlwaysDid(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		file   string
		agent  *objects
		code   int
		args   string
		stderr string
	}{
		{"status.txt", whole(), 0, "status", ""},
		{"status-degraded.txt", ailing(), 1, "status", ""},
		{"status-brief.txt", ailing(), 1, "status --brief", ""},
		{"status.json", ailing(), 1, "status -o json", ""},
		{"services.txt", whole(), 0, "services", ""},
		{"services-wide.txt", whole(), 0, "services -o wide", ""},
		{"services-prod.txt", whole(), 0, "services -n prod --no-headers", ""},
		{"services-web.txt", whole(), 0, "services default/web", ""},
		{"services-web.txt", whole(), 0, "services [fd00::10]:80", ""},
		{"services-headless.txt", whole(), 0, "services -n default db", ""},
		{"services-lacking.txt", whole(), 0, "services --no-endpoints -o name", ""},
		{"services-sorted.txt", whole(), 0, "services --sort-by backends --type clusterip -o name", ""},
		{"services-all.txt", whole(), 0, "services -A -n prod -o name", ""},
		{"services.json", whole(), 0, "services -o json", ""},
		{"services-shop.yaml", whole(), 0, "services prod/shop -o yaml", ""},
		{"services-names.txt", whole(), 0, "services -o jsonpath={.items[*].name}", ""},
		{"services-none.txt", whole(), 1, "services 10.96.0.10:81", "no Service is 10.96.0.10:81"},
		{"status-colour.txt", ailing(), 1, "status --color always --no-headers", ""},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			c := newCommand(t)
			c.agent(test.agent)
			out, errOut := c.run(test.code, strings.Fields(test.args)...)
			golden(t, test.file, out)
			if strings.TrimSpace(errOut) != test.stderr {
				t.Errorf("standard error %q, want %q", errOut, test.stderr)
			}
		})
	}
}

func TestWhatCannotBeMeantIsAUsageErrorThatSaysWhatCan(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"status -o xml":                       "use table, wide, json",
		"status --color blue":                 "use auto, always or never",
		"services --sort-by conns":            "use name or backends",
		"services --type Headless":            "use ClusterIP, NodePort",
		"services a b":                        "accepts at most 1 arg",
		"dump routes":                         `there is no map "routes": use one of affinity,`,
		"dump frontends --addr 10.0.0":        "--addr 10.0.0: use IP or IP:PORT",
		"dump backends --raw --proto tcp":     "leave them out",
		"top":                                 `unknown command "top"`,
		"services -o jsonpath={.items[0].no}": "no is not found",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			c := newCommand(t)
			c.agent(whole())
			if _, errOut := c.run(exitError, strings.Fields(args)...); !strings.Contains(errOut, want) {
				t.Errorf("standard error %q, want %q", errOut, want)
			}
		})
	}
}

func TestWithNothingToTalkToTheExitCodeIsThree(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"status", "status --brief", "services", "dump all", "verify"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			_, errOut := newCommand(t).run(exitNobody, strings.Fields(args)...)
			if !strings.Contains(errOut, "nothing to talk to") || !strings.Contains(errOut, "--bpffs-root") {
				t.Errorf("standard error %q", errOut)
			}
		})
	}
}

// recovering is degraded when it is first asked.
type recovering struct {
	objects
	asked atomic.Int32
}

func (r *recovering) Status() api.Status {
	if r.asked.Add(1) < 4 {
		return ailing().status
	}
	return r.objects.Status()
}

func TestWaitingEndsWhenNothingIsDegradedAnyMore(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	c.agent(&recovering{objects: *whole()})
	if out, _ := c.run(exitFine, "status", "--brief", "--wait", "1m"); out != "ok\n" {
		t.Errorf("got %q", out)
	}
}

func TestEverySubcommandHasExamples(t *testing.T) {
	t.Parallel()
	for _, cmd := range newRoot(&environment{}).Commands() {
		if cmd.Example == "" || cmd.Short == "" || cmd.Long == "" {
			t.Errorf("%s lacks a description or an example", cmd.Name())
		}
	}
}

func TestCompletionKnowsTheMaps(t *testing.T) {
	t.Parallel()
	var completed bytes.Buffer
	if run(&environment{out: &completed, errOut: io.Discard}, []string{"__complete", "dump", "node"}) != exitFine || !strings.Contains(completed.String(), "node-addrs") {
		t.Errorf("got %q", completed.String())
	}
	if out, _ := newCommand(t).run(exitFine, "completion", "bash"); !strings.Contains(out, "portolan") {
		t.Errorf("got %q", out)
	}
}
