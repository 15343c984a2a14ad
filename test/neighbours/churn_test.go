// SPDX-License-Identifier: Apache-2.0

package neighbours_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

// A pod goes as in Kubernetes: terminating first, then, when its last request
// is answered, out of the endpoints and by DEL. The one that comes by ADD has other addresses.
func TestPodsComeAndGoByCNIUnderTraffic(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { comeAndGo(t, m) })
	}
}

func comeAndGo(t *testing.T, m mode) {
	c := newCluster(t, m)
	web := c.web()
	c.serve(web)
	c.start()
	hammers := map[string]*world.Hammer{}
	hammer := func(who string, from *world.Probe, addrs ...string) {
		for _, addr := range addrs {
			for _, proto := range protocols {
				name := who + " by " + proto + " to " + addr
				hammers[name] = world.Must(from.Hammer(proto, addr, world.HammerConfig{Pause: 4 * time.Millisecond}))(t)
			}
		}
	}
	hammer("outside", c.client, web.outsideFrontends(c.near)...)
	for _, n := range []*node{c.near, c.far} {
		who := "a pod of " + n.Name()
		hammer(who, c.clients[who].Probe, web.clusterIPFrontends()...)
	}
	// answered returns when every request that was under way is answered.
	answered := func() {
		for name, h := range hammers {
			before := world.Must(h.Report())(t)
			world.Eventually(t, func() error {
				if now := world.Must(h.Report())(t); now.Total < before.Total+2 {
					return fmt.Errorf("%s: still %d answers", name, now.Total)
				}
				return nil
			})
		}
	}
	answered()
	for _, i := range []int{1, 3, 0, 2} {
		p, old := c.pods[i], c.pods[i].v4
		web.pods = slices.DeleteFunc(slices.Clone(c.pods), func(x *pod) bool { return x == p })
		web.leaving = p
		c.serve(web)
		answered()
		web.leaving = nil
		c.serve(web)
		p.disconnect(t)
		answered()
		p.connect(t)
		if p.v4 == old {
			t.Errorf("%s has the address %s again", p.Name(), old)
		}
		web.pods = c.pods
		c.serve(web)
		answered()
	}
	for name, h := range hammers {
		report := world.Must(h.Stop())(t)
		if err := judge(report, c.pods); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("host ports go on working", c.hostPortsWork)
}
