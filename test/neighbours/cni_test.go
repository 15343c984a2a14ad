// SPDX-License-Identifier: Apache-2.0

package neighbours_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"portolan.dev/portolan/test/world"
)

// pluginLimit is what one ADD or DEL may take before the test gives up.
const pluginLimit = 30 * time.Second

// network is a CNI configuration as a node has it in /etc/cni/net.d.
type network struct {
	list    *libcni.NetworkConfigList
	plugins *libcni.CNIConfig
	problem error
}

// bridge is the network of a node whose pods hang on a bridge.
func bridge(n *node) network {
	return configure(n, `"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true`)
}

// ptp is the network of a node that routes to each pod by a link of its own.
func ptp(n *node) network { return configure(n, `"type": "ptp"`) }

// configure chains a plugin that masquerades what pods send elsewhere with
// portmap.
func configure(n *node, plugin string) network {
	v4, v6 := n.PodCIDRs()
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{
		"cniVersion": "1.0.0", "name": "pods",
		"plugins": [
			{%s, "ipMasq": true, "ipMasqBackend": "iptables", "ipam": {
				"type": "host-local", "dataDir": %q,
				"ranges": [[{"subnet": %q}], [{"subnet": %q}]],
				"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
			{"type": "portmap", "backend": "iptables", "snat": true, "capabilities": {"portMappings": true}}
		]}`, plugin, filepath.Join(n.Dir(), "ipam"), v4, v6))
	return network{
		list:    list,
		plugins: libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, filepath.Join(n.Dir(), "cni"), nil),
		problem: err,
	}
}

// pod is a pod whose network the plugins have laid.
type pod struct {
	*world.Pod
	node     *node
	hostPort int // forwarded to 8080 by portmap; 0: none
	v4, v6   netip.Addr
}

// addPod makes a pod, and a server in it that answers with the pod's name.
func (n *node) addPod(name string, hostPort int) *pod {
	t := n.stage.t
	t.Helper()
	if n.network.problem != nil {
		t.Fatal(n.network.problem)
	}
	p := &pod{Pod: world.Must(n.AddPod(name, world.PodConfig{Bare: true}))(t), node: n, hostPort: hostPort}
	p.connect(t)
	world.Must(p.Serve(name, "tcp:8080", "udp:8080"))(t)
	return p
}

func (p *pod) runtime() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: p.node.stage.world.ID() + "-" + p.Name(), NetNS: p.Path(), IfName: "eth0"}
	if p.hostPort != 0 {
		var mappings []map[string]any
		for _, proto := range protocols {
			mappings = append(mappings, map[string]any{"hostPort": p.hostPort, "containerPort": 8080, "protocol": proto})
		}
		rt.CapabilityArgs = map[string]any{"portMappings": mappings}
	}
	return rt
}

// connect runs ADD in the node's namespace, as a container runtime does.
func (p *pod) connect(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pluginLimit)
	defer cancel()
	err := p.node.Do(func() error {
		result, err := p.node.network.plugins.AddNetworkList(ctx, p.node.network.list, p.runtime())
		if err != nil {
			return err
		}
		laid, err := current.NewResultFromResult(result)
		if err != nil {
			return err
		}
		for _, c := range laid.IPs {
			addr, ok := netip.AddrFromSlice(c.Address.IP)
			if addr = addr.Unmap(); !ok {
				continue
			}
			if addr.Is4() {
				p.v4 = addr
			} else {
				p.v6 = addr
			}
		}
		if !p.v4.IsValid() || !p.v6.IsValid() {
			return errors.New("the plugins gave no address of one family")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("CNI ADD of %s: %v", p.Name(), err)
	}
}

// disconnect runs DEL.
func (p *pod) disconnect(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pluginLimit)
	defer cancel()
	err := p.node.Do(func() error {
		return p.node.network.plugins.DelNetworkList(ctx, p.node.network.list, p.runtime())
	})
	if err != nil {
		t.Fatalf("CNI DEL of %s: %v", p.Name(), err)
	}
}
