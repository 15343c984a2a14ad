// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/test/kernel"
)

func TestTheAgentRunsOnKubeProxysConfiguration(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "config.conf")
	text := `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: /nowhere, qps: 5}
healthzBindAddress: 127.0.0.1:10256
enableProfiling: true
nodePortAddresses: [192.168.100.0/24]
conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 2h}
iptables: {syncPeriod: 30s}
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStageWithout(t, nodeManifest+storeService(32100)+storeSlice("here"))
	s.startWith("--manifests", s.manifests, "--config", config, "--node-name", "here", "--cgroup-root", s.node.CgroupRoot(),
		"--bpffs-root", s.node.BPFFS(), "--socket", s.node.Socket())
	s.eventually("127.0.0.1:10256", "/readyz", 200)
	s.eventually("192.168.100.1:32100", "/", 200)
	s.silent("127.0.0.1:32100")
	s.eventually("127.0.0.1:10249", "/debug/pprof/cmdline", 200)
	var dump map[string]map[string]any
	if got := s.eventually("127.0.0.1:10249", "/configz", 200); json.Unmarshal([]byte(got.body), &dump) != nil ||
		dump["portolan.dev"]["kind"] != "PortolanConfiguration" || dump["portolan.dev"]["conntrackTcpTimeoutCloseWait"] != "2h0m0s" {
		t.Errorf("/configz says %s", got.body)
	}
	ignored := `fields="clientConnection.qps (there are lists and watches only: nothing to limit); ` +
		`iptables.syncPeriod (changes get into the tables as they happen); mode (Services are served by BPF tables, whatever the mode)"`
	if strings.Count(s.agent.Output(), ignored) != 1 {
		t.Errorf("the log does not name once what is ignored: %s", ignored)
	}
}

func TestTheAgentRaisesSettingsOfConnectionTracking(t *testing.T) {
	t.Parallel()
	kernel.Need(t, kernel.Conntrack)
	s := newStage(t, nodeManifest, "--conntrack-tcp-timeout-close-wait", "2h")
	s.wait(func() error {
		const file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"
		var got []byte
		err := s.node.Do(func() (err error) {
			got, err = os.ReadFile(file)
			return err
		})
		if err == nil && string(got) != "7200\n" {
			err = fmt.Errorf("%s is %s, want 7200", file, got)
		}
		return err
	})
}

func TestABusyAddressIsFatalOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	s := newStageWithout(t, nodeManifest)
	var held net.Listener
	err := s.node.Do(func() (err error) {
		held, err = net.Listen("tcp4", "127.0.0.1:10256")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	flags := []string{"--manifests", s.manifests, "--healthz-bind-address", "127.0.0.1:10256"}
	s.startWith(append(s.node.AgentFlags(), append(flags, "--bind-address-hard-fail")...)...)
	if err := s.agent.Wait(time.Minute); err == nil || !strings.Contains(s.agent.Output(), "--healthz-bind-address 127.0.0.1:10256") {
		t.Errorf("the agent ended with %v and said %s", err, s.agent.Output())
	}
	s.startWith(append(s.node.AgentFlags(), flags...)...)
	s.wait(func() error {
		if !strings.Contains(s.agent.Output(), "--healthz-bind-address 127.0.0.1:10256") {
			return errors.New("the log does not name the address")
		}
		return nil
	})
	held.Close()
	s.eventually("127.0.0.1:10256", "/readyz", 200)
}
