// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/test/world"
)

const nodeManifest = `
apiVersion: v1
kind: Node
metadata: {name: here}
status:
  addresses:
  - {type: InternalIP, address: 192.168.100.1}
  - {type: InternalIP, address: "fd00:192:168:100::1"}
---
`

// storeService is a load balancer's Service with policy Local.
func storeService(healthPort int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: store, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.41
  clusterIPs: [10.96.0.41, "fd00:10:96::41"]
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: Local
  healthCheckNodePort: %d
  ports: [{name: http, port: 80, nodePort: 30081}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.10}, {ip: "2001:db8:1b::10"}]}}
---
`, healthPort)
}

// storeSlice has one endpoint on each of the nodes.
func storeSlice(nodes ...string) string {
	text := `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: store-1, namespace: shop, labels: {kubernetes.io/service-name: store}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
`
	for i, node := range nodes {
		text += fmt.Sprintf("- {addresses: [10.244.1.%d], conditions: {ready: true}, nodeName: %s}\n", 1+i, node)
	}
	return text + "---\n"
}

func TestLoadBalancersAreToldOfLocalEndpoints(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice("here", "here", "there"))
	for _, addr := range []string{"127.0.0.1", "192.168.100.1"} {
		got := s.eventually(addr+":32100", "/any", 200)
		if weight := got.header.Get("X-Load-Balancing-Endpoint-Weight"); weight != "2" || !strings.Contains(got.body, "\n\t\"localEndpoints\": 2,\n") {
			t.Errorf("%s says weight %s and %s", addr, weight, got.body)
		}
	}
	s.eventually("[fd00:192:168:100::1]:32100", "/", 503) // no IPv6 endpoint
	s.write("all.yaml", nodeManifest+storeService(32100)+storeSlice("there"))
	s.eventually("192.168.100.1:32100", "/", 503)
	s.write("all.yaml", nodeManifest+storeService(32200)+storeSlice("here"))
	s.eventually("192.168.100.1:32200", "/", 200)
	s.silent("192.168.100.1:32100")
	s.write("all.yaml", nodeManifest+strings.Replace(storeService(32200), "Policy: Local", "Policy: Cluster", 1)+storeSlice("here"))
	s.silent("192.168.100.1:32200")
}

func TestHealthChecksAreAnsweredOnNodePortAddressesAsTheyComeAndGo(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice("here"), "--nodeport-addresses", "192.168.100.0/24,198.51.100.0/24,fd00:192::/32")
	s.eventually("192.168.100.1:32100", "/", 200)
	s.eventually("[fd00:192:168:100::1]:32100", "/", 503)
	s.silent("127.0.0.1:32100")
	extra := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, 1), Mask: net.CIDRMask(32, 32)}}
	change := func(f func(netlink.Link, *netlink.Addr) error) {
		t.Helper()
		err := s.node.Do(func() error {
			uplink, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return f(uplink, extra)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	change(netlink.AddrAdd)
	s.eventually("198.51.100.1:32100", "/", 200)
	change(netlink.AddrDel)
	s.silent("198.51.100.1:32100")
	s.eventually("192.168.100.1:32100", "/", 200)
}

func TestABusyHealthPortIsNamedAndTakenLater(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest)
	holder := world.Must(world.Must(s.node.Host("holder"))(t).Probe())(t)
	conn, r := holder.Hold("tcp", "192.168.100.1:32100")
	if r.Problem != "" {
		t.Fatal(r.Problem)
	}
	s.write("all.yaml", nodeManifest+storeService(32100)+storeSlice("here"))
	const named = "healthCheckNodePort 32100 is not answered"
	s.wait(func() error {
		if !strings.Contains(s.agent.Output(), named) || !strings.Contains(s.agent.Output(), "shop/store") {
			return fmt.Errorf("the log does not name the port")
		}
		return nil
	})
	conn.Close()
	s.eventually("192.168.100.1:32100", "/", 200)
	if !strings.Contains(s.agent.Output(), "mended: "+named) {
		t.Error("the log does not say that it is mended")
	}
}

// report is the body of an answer about the proxy.
type report struct {
	LastUpdated, CurrentTime time.Time
	NodeEligible             *bool
	Healthy                  bool
	Status                   map[string]struct{ Healthy bool }
	Reasons                  []string
}

func (a answer) report(t *testing.T) (r report) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &r); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return r
}

const probes = "127.0.0.1:10256"

func TestHealthzMindsTheNodeAndLivezDoesNot(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice("here"), "--healthz-bind-address", "0.0.0.0:10256")
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		got := s.eventually(probes, path, 200)
		r := got.report(t)
		if !r.Healthy || !r.Status["IPv4"].Healthy || !r.Status["IPv6"].Healthy || r.LastUpdated.IsZero() || (r.NodeEligible != nil) != (path == "/healthz") {
			t.Errorf("%s answers %s", path, got.body)
		}
	}
	for _, c := range []struct {
		node string
		code int
	}{
		{"spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\n", 503},
		{"spec: {unschedulable: true, taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}\n", 200},
	} {
		node := strings.Replace(nodeManifest, "status:\n", c.node+"status:\n", 1)
		s.write("all.yaml", node+storeService(32100)+storeSlice("here"))
		if r := s.eventually(probes, "/healthz", c.code).report(t); *r.NodeEligible != (c.code == 200) || !r.Healthy {
			t.Errorf("with %s /healthz says %+v", c.node, r)
		}
		s.eventually(probes, "/livez", 200)
		s.eventually("127.0.0.1:32100", "/", 200)
	}
}

func TestADataplaneThatLosesAHookIsNotHealthy(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice("here"), "--healthz-bind-address", "0.0.0.0:10256")
	s.eventually(probes, "/readyz", 200)
	if err := os.Remove(filepath.Join(s.node.BPFFS(), "links", "connect6")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/livez", "/healthz", "/readyz"} {
		r := s.eventually(probes, path, 503).report(t)
		if r.Healthy || !r.Status["IPv4"].Healthy || r.Status["IPv6"].Healthy || len(r.Reasons) != 1 || !strings.Contains(r.Reasons[0], "cgroup/connect6: no link is pinned") {
			t.Errorf("%s says %+v", path, r)
		}
	}
	if got := s.eventually("127.0.0.1:32100", "/", 503); !strings.Contains(got.body, `"serviceProxyHealthy": false`) || !strings.Contains(got.body, `"localEndpoints": 1`) {
		t.Errorf("the health check of a Service says %s", got.body)
	}
	// The mend that the message names.
	if err := s.agent.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.start("--healthz-bind-address", "0.0.0.0:10256")
	s.eventually(probes, "/readyz", 200)
}

func TestASelfTestPacketFindsAFrontendThatIsGone(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice("here"),
		"--healthz-bind-address", "0.0.0.0:10256", "--xdp", "generic")
	s.eventually(probes, "/readyz", 200)
	set, err := maps.OpenPinned(loader.TableDir(s.node.BPFFS()), true)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	address := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.10"), 0)
	if _, found := set.Frontends4.Remove(maps.Frontend4Key(address, 0)); !found {
		t.Fatal("the address has no entry")
	}
	r := s.eventually(probes, "/livez", 503).report(t)
	if r.Status["IPv4"].Healthy || !r.Status["IPv6"].Healthy || len(r.Reasons) == 0 || !strings.Contains(r.Reasons[0], "203.0.113.10 is not among the frontends") {
		t.Errorf("/livez says %+v", r)
	}
	if err := set.Frontends4.Put(maps.Frontend4Key(address, 0), maps.AddressPublished); err != nil {
		t.Fatal(err)
	}
	s.eventually(probes, "/livez", 200)
}

func TestAnAgentThatIsCutOffSaysWhatStillServes(t *testing.T) {
	t.Parallel()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStageWithout(t, nodeManifest+storeService(32100)+storeSlice("here"))
	cutOff := append(s.node.AgentFlags(), "--kubeconfig", kubeconfig, "--healthz-bind-address", "0.0.0.0:10256", "--metrics-bind-address", "127.0.0.1:10249")
	stop := func() {
		t.Helper()
		if err := s.agent.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	// On a new node nothing serves, and no restart would help.
	s.startWith(cutOff...)
	s.eventually(probes, "/livez", 200)
	for _, path := range []string{"/healthz", "/readyz"} {
		if r := s.eventually(probes, path, 503).report(t); r.Healthy || len(r.Reasons) != 1 || r.Reasons[0] != "not everything has been seen yet" {
			t.Errorf("%s of a new node says %+v", path, r)
		}
	}
	s.wait(func() error {
		got, err := s.get("127.0.0.1:10249", "/metrics")
		if err == nil && !strings.Contains(got.body, `rest_client_requests_total{code="<error>",host="127.0.0.1:1",method="GET"}`) {
			err = fmt.Errorf("the scrape does not count requests that failed")
		}
		return err
	})
	stop()
	s.start("--healthz-bind-address", "0.0.0.0:10256")
	s.eventually(probes, "/readyz", 200)
	stop()
	// After a restart the tables of the agent before serve on.
	s.startWith(cutOff...)
	s.eventually(probes, "/livez", 200)
	s.eventually(probes, "/healthz", 200)
	s.eventually(probes, "/readyz", 503)
}

// dnsService is a Service with a UDP port in both families.
const dnsService = `
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-4, namespace: kube-system, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: [10.244.1.9], conditions: {ready: true}, nodeName: here}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-6, namespace: kube-system, labels: {kubernetes.io/service-name: dns}}
addressType: IPv6
ports: [{name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: ["fd00:10:244:1::9"], conditions: {ready: true}, nodeName: here}]
---
`

func TestASocketOfTheAgentFindsTablesThatDoNotTranslate(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+dnsService, "--healthz-bind-address", "0.0.0.0:10256")
	s.eventually(probes, "/readyz", 200)
	set, err := maps.OpenPinned(loader.TableDir(s.node.BPFFS()), true)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	key := maps.Frontend4Key(netip.MustParseAddrPort("10.96.0.10:53"), 17)
	id, ok := set.Frontends4.Get(key)
	if !ok {
		t.Fatal("no frontend")
	}
	faulty := func(v4, v6 bool, reason string) {
		t.Helper()
		r := s.eventually(probes, "/livez", 503).report(t)
		if r.Status["IPv4"].Healthy != v4 || r.Status["IPv6"].Healthy != v6 || !strings.Contains(strings.Join(r.Reasons, " "), reason) {
			t.Errorf("/livez says %+v, want a reason that says %q", r, reason)
		}
	}
	set.Frontends4.Remove(key)
	faulty(false, true, "UDP frontend 10.96.0.10:53 is not in the tables")
	// An entry that leads nowhere.
	if err := set.Frontends4.Put(key, id+1000); err != nil {
		t.Fatal(err)
	}
	s.wait(func() error {
		got, err := s.get(probes, "/livez")
		if err == nil && !strings.Contains(got.body, "UDP frontend 10.96.0.10:53 has endpoints, but none in the tables") {
			err = fmt.Errorf("/livez says %s", got.body)
		}
		return err
	})
	if err := set.Frontends4.Put(key, id); err != nil {
		t.Fatal(err)
	}
	s.eventually(probes, "/livez", 200)
	// Without its bit the programs take the address for nobody's.
	bit := maps.FilterBit(netip.MustParseAddr("fd00:10:96::10"), set.VIPFilter.Len()*64)
	word := set.VIPFilter.LoadWord(bit/64, 0)
	set.VIPFilter.StoreWord(bit/64, 0, word&^(1<<(bit%64)))
	faulty(true, false, "a connect to UDP frontend [fd00:10:96::10]:53 was not translated")
	set.VIPFilter.StoreWord(bit/64, 0, word)
	s.eventually(probes, "/livez", 200)
}
