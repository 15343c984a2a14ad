// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"strings"
	"testing"
)

// The kubelet names a Node so, and kube-proxy looks for it by that name.
func TestTheNodesNameIsWrittenAsTheKubeletWritesIt(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, strings.ToLower(host)},
		{[]string{"--node-name", "Worker-1.Example.COM"}, "worker-1.example.com"},
		{[]string{"--hostname-override", " worker-1\n"}, "worker-1"},
		{[]string{"--config", file(t, head+"nodeName: Worker-1")}, "worker-1"},
		{[]string{"--config", file(t, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: Worker-1\n")}, "worker-1"},
	} {
		if got := mustParse(t, c.args...).NodeName; got != c.want {
			t.Errorf("%q: the node is %q, want %q", c.args, got, c.want)
		}
	}
	if _, err := parse(t, "--node-name", " "); err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("a name of nothing: %v", err)
	}
}

func TestKubeProxysModeIsNamedAsIgnored(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "--proxy-mode", "nftables")
	if len(c.Ignored) != 1 || !strings.HasPrefix(c.Ignored[0], "--proxy-mode (") {
		t.Errorf("ignored are %q", c.Ignored)
	}
	if _, there := c.Dump()["proxyMode"]; there {
		t.Error("the dump has it")
	}
	if c := mustParse(t); len(c.Ignored) > 0 {
		t.Errorf("nothing was given, and ignored are %q", c.Ignored)
	}
}
