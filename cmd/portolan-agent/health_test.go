// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

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
		text += fmt.Sprintf("- {addresses: [10.244.1.%d], conditions: {ready: true}, nodeName: %s}\n", 10+i, node)
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
	s.eventually("192.168.100.1:32100", "/", 200)
}

func TestABusyHealthPortIsNamedAndTakenLater(t *testing.T) {
	t.Parallel()
	w := newStage(t, nodeManifest)
	holder := world.Must(world.Must(w.node.Host("holder"))(t).Probe())(t)
	conn, r := holder.Hold("tcp", "192.168.100.1:32100")
	if r.Problem != "" {
		t.Fatal(r.Problem)
	}
	w.write("all.yaml", nodeManifest+storeService(32100)+storeSlice("here"))
	const named = "healthCheckNodePort 32100 is not answered"
	world.Eventually(t, func() error {
		if !strings.Contains(w.agent.Output(), named) || !strings.Contains(w.agent.Output(), "shop/store") {
			return fmt.Errorf("the log does not name the port")
		}
		return nil
	})
	conn.Close()
	w.eventually("192.168.100.1:32100", "/", 200)
	if !strings.Contains(w.agent.Output(), "mended: "+named) {
		t.Error("the log does not say that it is mended")
	}
}
