// SPDX-License-Identifier: Apache-2.0

package neighbours_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"portolan.dev/portolan/test/world"
)

// proxyRules lays in a node what kube-proxy in iptables mode would for a
// Service with one endpoint: translation by connection tracking, and
// masquerade of what came in by a NodePort or a load balancer's address. Source
// ports are kept rather than random, to be outside --masquerade-ports for sure.
func (n *node) proxyRules(t *testing.T, s svc, endpoint *pod) {
	t.Helper()
	for _, family := range []string{"IPv4", "IPv6"} {
		to := netip.AddrPortFrom(endpoint.addr(family), 8080).String()
		published := fmt.Sprintf("203.0.113.%d", s.number)
		if family == "IPv6" {
			published = fmt.Sprintf("2001:db8:1b::%d", s.number)
		}
		n.iptables(t, family, "-N KUBE-SERVICES", "-A PREROUTING -j KUBE-SERVICES", "-A OUTPUT -j KUBE-SERVICES",
			"-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE")
		for _, proto := range protocols {
			match := "-A KUBE-SERVICES -p " + proto + " -m " + proto + " "
			n.iptables(t, family,
				match+"-d "+s.clusterIPs()[family].String()+" --dport 80 -j DNAT --to-destination "+to,
				match+"-d "+published+" --dport 80 -j MARK --or-mark 0x4000",
				match+"-d "+published+" --dport 80 -j DNAT --to-destination "+to,
				match+fmt.Sprintf("-m addrtype --dst-type LOCAL --dport %d -j MARK --or-mark 0x4000", 30000+s.number),
				match+fmt.Sprintf("-m addrtype --dst-type LOCAL --dport %d -j DNAT --to-destination %s", 30000+s.number, to))
		}
	}
}

// removeProxyRules takes them away, as kube-proxy --cleanup does: what
// connection tracking knows stays.
func (n *node) removeProxyRules(t *testing.T) {
	t.Helper()
	for _, family := range []string{"IPv4", "IPv6"} {
		n.iptables(t, family, "-D PREROUTING -j KUBE-SERVICES", "-D OUTPUT -j KUBE-SERVICES",
			"-D POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE", "-F KUBE-SERVICES", "-X KUBE-SERVICES")
	}
}

// iptables changes the nat table of the node.
func (n *node) iptables(t *testing.T, family string, rules ...string) {
	t.Helper()
	command := "iptables"
	if family == "IPv6" {
		command = "ip6tables"
	}
	err := n.Do(func() error {
		for _, rule := range rules {
			cmd := exec.Command(command, append([]string{"-w", "-t", "nat"}, strings.Fields(rule)...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s %s: %w: %s", command, rule, err, out)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// held is a socket that was opened through the other proxy.
type held struct {
	what string
	conn *world.Conn
	tcp  bool
}

// What another proxy of this node translates goes on through it when an agent
// starts, and when the other's rules go; what opens then is ours.
func TestConnectionsThatKubeProxyHoldsGoOn(t *testing.T) {
	for _, m := range modes {
		for _, where := range []string{"this node", "another node"} {
			t.Run(m.name+", endpoint on "+where, func(t *testing.T) {
				c := newCluster(t, m)
				web := c.web()
				c.serve(web)
				old := c.pods[1]
				if where != "this node" {
					old = c.pods[3]
				}
				c.near.proxyRules(t, web, old)
				conns := c.hold(t, web, old)
				c.start()
				exchange(t, "beside the agent", conns, old)
				// The other's rules lead to one pod, ours to four.
				for _, proto := range protocols {
					for _, addr := range web.outsideFrontends(c.near) {
						served(t, c.client, proto, addr, c.pods...)
					}
					for _, who := range []string{"a pod of node1", "the host node1"} {
						for _, addr := range web.clusterIPFrontends() {
							served(t, c.clients[who].Probe, proto, addr, c.pods...)
						}
					}
				}
				exchange(t, "after new connections", conns, old)
				c.near.removeProxyRules(t)
				exchange(t, "without its rules", conns, old)
				for _, addr := range web.outsideFrontends(c.near) {
					served(t, c.client, "tcp", addr, c.pods...)
				}
				exchange(t, "at last", conns, old)
			})
		}
	}
}

// hold opens connections to all frontends through the other proxy.
func (c *cluster) hold(t *testing.T, web svc, old *pod) []held {
	t.Helper()
	var conns []held
	open := func(who string, from *world.Probe, addrs ...string) {
		for _, addr := range addrs {
			for _, proto := range protocols {
				conn, r := from.Open(proto, addr)
				h := held{what: who + " by " + proto + " to " + addr, conn: conn, tcp: proto == "tcp"}
				if r.Err() != nil {
					t.Fatalf("%s: %v", h.what, r.Err())
				}
				conns = append(conns, h)
			}
		}
	}
	open("outside", c.client, web.outsideFrontends(c.near)...)
	for _, who := range []string{"a pod of node1", "the host node1"} {
		open(who, c.clients[who].Probe, web.clusterIPFrontends()...)
	}
	exchange(t, "before the agent", conns, old)
	return conns
}

// exchange asks over each open socket, several times, and wants the answers
// from the endpoint that has the connection. Datagrams from outside are ours as
// soon as the agent runs, whoever had them before.
func exchange(t *testing.T, when string, conns []held, old *pod) {
	t.Helper()
	for _, h := range conns {
		for range 5 {
			r := h.conn.Exchange()
			if r.Err() != nil || h.tcp && r.Backend != old.Name() {
				t.Errorf("%s, %s: %v", when, h.what, r)
				break
			}
		}
	}
}
