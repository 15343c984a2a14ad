// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func TestTheMetricsPortAnswersAsKubeProxysDoes(t *testing.T) {
	t.Parallel()
	const port = "127.0.0.1:10249"
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice("there"), "--metrics-bind-address", port, "--healthz-bind-address", "0.0.0.0:10256")
	if got := s.eventually(port, "/proxyMode", 200); got.body != "portolan" {
		t.Errorf("/proxyMode says %q", got.body)
	}
	if got := s.eventually(port, "/healthz", 200); got.body != "ok" {
		t.Errorf("/healthz says %q", got.body)
	}
	s.eventually(probes, "/healthz", 200)
	says := func(lines ...string) {
		t.Helper()
		s.wait(func() error {
			got, err := s.get(port, "/metrics")
			if err != nil {
				return err
			}
			for _, line := range lines {
				if !strings.Contains(got.body, "\n"+line) {
					return fmt.Errorf("the scrape does not say %s", line)
				}
			}
			return nil
		})
	}
	says("portolan_synced 1\n",
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`+"\n",
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1`+"\n",
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0`+"\n",
		`kubeproxy_proxy_healthz_total{code="200"}`,
		`portolan_frontends{family="IPv4",kind="ClusterIP"} 1`+"\n",
		`portolan_attachment_up{device="eth0",hook="tc",mode="`,
		"process_resident_memory_bytes ")
	s.write("all.yaml", nodeManifest+storeService(32100)+strings.Replace(storeSlice("here"), "labels:",
		`annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2999-01-01T00:00:00Z"}, labels:`, 1))
	says(`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`+"\n",
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`+"\n",
		"portolan_network_programming_seconds_count 1\n",
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0`+"\n")
	// By these two alerts tell that a proxy hangs: also of a family that had no
	// change, no batch may seem to wait.
	s.wait(func() error {
		got, err := s.get(port, "/metrics")
		if err != nil {
			return err
		}
		for _, family := range []string{"IPv4", "IPv6"} {
			queued, done := value(got.body, "last_queued_timestamp_seconds", family), value(got.body, "last_timestamp_seconds", family)
			if queued == 0 || done < queued {
				return fmt.Errorf("%s: queued at %f, in the tables at %f", family, queued, done)
			}
		}
		return nil
	})
}

// value is that of a metric of kube-proxy's syncs.
func value(scrape, metric, family string) float64 {
	_, rest, _ := strings.Cut(scrape, fmt.Sprintf("\nkubeproxy_sync_proxy_rules_%s{ip_family=%q} ", metric, family))
	number, _, _ := strings.Cut(rest, "\n")
	v, _ := strconv.ParseFloat(number, 64) // 0 when there is none
	return v
}
