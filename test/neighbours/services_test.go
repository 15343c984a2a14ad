// SPDX-License-Identifier: Apache-2.0

package neighbours_test

import (
	"net/netip"
	"testing"

	"portolan.dev/portolan/test/world"
)

// cluster is a stage with two pods a node, the first of which have a host port.
type cluster struct {
	*stage
	pods    []*pod            // near1, near2, far1, far2
	clients map[string]inside // by what they are
}

// inside is a client on a node.
type inside struct {
	*world.Probe
	node *node
}

const nearHostPort, farHostPort = 8081, 8082

// newCluster lays the pods and a client in the network of each node, pod and
// host.
func newCluster(t *testing.T, m mode) *cluster {
	t.Helper()
	c := &cluster{stage: newStage(t, m), clients: map[string]inside{}}
	c.pods = []*pod{
		c.near.addPod("near1", nearHostPort), c.near.addPod("near2", 0),
		c.far.addPod("far1", farHostPort), c.far.addPod("far2", 0),
	}
	for _, n := range []*node{c.near, c.far} {
		pod := n.addPod("client-"+n.Name(), 0)
		c.clients["a pod of "+n.Name()] = inside{world.Must(pod.Probe())(t), n}
		place := world.Must(n.Host("operator"))(t)
		c.clients["the host "+n.Name()] = inside{world.Must(place.Probe())(t), n}
	}
	return c
}

func (c *cluster) web() svc { return svc{name: "web", number: 10, pods: c.pods} }
func (c *cluster) direct() svc {
	return svc{name: "direct", number: 20, forwarding: "dsr", pods: c.pods}
}

func TestServicesAreReachedBesideCNIPlugins(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			c := newCluster(t, m)
			web, direct := c.web(), c.direct()
			c.serve(web, direct)
			c.start()
			for who, client := range c.clients {
				t.Run("from "+who, func(t *testing.T) {
					for _, proto := range protocols {
						for _, addr := range append(web.clusterIPFrontends(), web.outsideFrontends(client.node)...) {
							served(t, client.Probe, proto, addr, c.pods...)
						}
					}
				})
			}
			for _, service := range []svc{web, direct} {
				t.Run("from outside to "+service.name, func(t *testing.T) {
					for _, proto := range protocols {
						for _, addr := range service.outsideFrontends(c.near, c.far) {
							served(t, c.client, proto, addr, c.pods...)
						}
					}
				})
			}
			t.Run("host ports go on working", c.hostPortsWork)
			t.Run("egress masquerade goes on working", c.egressIsMasqueraded)
			c.seenAs(t, direct)
		})
	}
}

// hostPortsWork reaches portmap's ports from wherever they are reached without
// an agent.
func (c *cluster) hostPortsWork(t *testing.T) {
	clients := map[string]*world.Probe{"outside": c.client}
	for who, client := range c.clients {
		clients[who] = client.Probe
	}
	for _, target := range []struct {
		pod  *pod
		port uint16
	}{{c.pods[0], nearHostPort}, {c.pods[2], farHostPort}} {
		for who, client := range clients {
			for _, addr := range []netip.Addr{target.pod.node.IPv4(), target.pod.node.IPv6()} {
				for _, proto := range protocols {
					report := world.Must(client.DialMany(proto, netip.AddrPortFrom(addr, target.port).String(), 4))(t)
					if err := judge(report, []*pod{target.pod}); err != nil {
						t.Errorf("%s to port %d of %s by %s: %v", who, target.port, addr, proto, err)
					}
				}
			}
		}
	}
}

// egressIsMasqueraded asks a server outside who its client is.
func (c *cluster) egressIsMasqueraded(t *testing.T) {
	world.Must(c.host.Serve("outside", "tcp:9000", "udp:9000"))(t)
	for _, n := range []*node{c.near, c.far} {
		for _, want := range []struct{ server, node netip.Addr }{{c.host.IPv4(), n.IPv4()}, {c.host.IPv6(), n.IPv6()}} {
			for _, proto := range protocols {
				r := c.clients["a pod of "+n.Name()].Dial(proto, netip.AddrPortFrom(want.server, 9000).String())
				if r.Err() != nil || r.Seen.Addr() != want.node {
					t.Errorf("%s from a pod of %s: %v, want it seen as %s", proto, n.Name(), r, want.node)
				}
			}
		}
	}
}

// seenAs wants endpoints on both nodes to see the client's own address where
// nothing has to masquerade.
func (c *cluster) seenAs(t *testing.T, direct svc) {
	t.Helper()
	for _, addr := range direct.outsideFrontends(c.near) {
		seen := map[string]bool{}
		for range 60 {
			r := c.client.Dial("tcp", addr)
			if r.Err() != nil {
				t.Errorf("%s: %v", addr, r.Err())
				continue
			}
			if a := r.Seen.Addr(); a != c.host.IPv4() && a != c.host.IPv6() {
				t.Errorf("%s: %s sees the client as %s", addr, r.Backend, a)
			}
			seen[r.Backend] = true
		}
		if len(seen) != len(c.pods) {
			t.Errorf("%s: answers of %v", addr, seen)
		}
	}
}

// A pod that is its own only endpoint talks to itself.
func TestPodsReachThemselvesThroughTheirService(t *testing.T) {
	c := newCluster(t, mode{"pod devices", []string{"--pod-devices", "veth*"}})
	var services []svc
	for i, p := range c.pods {
		services = append(services, svc{name: "own-" + p.Name(), number: 30 + i, pods: []*pod{p}})
	}
	c.serve(services...)
	c.start()
	for i, p := range c.pods {
		probe := world.Must(p.Probe())(t)
		t.Run(p.Name(), func(t *testing.T) {
			for _, addr := range append(services[i].clusterIPFrontends(), services[i].outsideFrontends(c.near, c.far)...) {
				for _, proto := range protocols {
					served(t, probe, proto, addr, p)
				}
			}
			for _, addr := range services[i].clusterIPFrontends() {
				if err := unseen(p, addr); err != nil {
					t.Errorf("%s by a socket that no program sees: %v", addr, err)
				}
			}
		})
	}
}
