// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/paths"
	"portolan.dev/portolan/test/world"
)

// nodePort measures a client outside that reaches a pod of a node through a
// NodePort, by tc, against the same by the pod's own address, which the node
// routes.
func nodePort(*bed) (figures []figure, err error) {
	w, err := world.New()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	n, err := w.AddNode("node")
	if err != nil {
		return nil, err
	}
	pod, err := n.AddPod("pod")
	if err != nil {
		return nil, err
	}
	client, err := w.AddHost("client")
	if err != nil {
		return nil, err
	}
	var streams [2]net.Listener
	var datagrams *net.UDPConn
	if err := pod.Do(func() error {
		// A port for each way: what the client's two ways leave behind in
		// TIME-WAIT must not meet.
		for i, addr := range []string{":8080", ":8081"} {
			if streams[i], err = net.Listen("tcp4", addr); err != nil {
				return err
			}
		}
		datagrams, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 8080})
		return err
	}); err != nil {
		return nil, err
	}
	defer datagrams.Close()
	for _, l := range streams {
		defer l.Close()
		go paths.Answer(l)
	}
	stop, err := serveNodePort(n, pod.IPv4())
	if err != nil {
		return nil, err
	}
	defer stop()
	direct := paths.Way{Addr: netip.AddrPortFrom(pod.IPv4(), 8080).String(), Server: datagrams}
	through := paths.Way{Addr: netip.AddrPortFrom(n.IPv4(), 30080).String(), Server: datagrams}
	pods, _ := n.PodCIDRs()
	if err := client.RouteBy(n, pods.String()); err != nil {
		return nil, err
	}
	err = client.Do(func() error {
		r, err := paths.Open(rounds, "udp4", direct, through, paths.PingPong)
		if err != nil {
			return fmt.Errorf("UDP ping-pong: %w", err)
		}
		figures = append(figures, figure{"UDP ping-pong through a NodePort, tc", r.Ratio, "ratio", "routed to the pod, ns", r.Base, 0, true})
		direct.Addr = netip.AddrPortFrom(pod.IPv4(), 8081).String()
		r, err = paths.Requests(2*rounds, direct, through)
		if err != nil {
			return fmt.Errorf("TCP connect, request, close: %w", err)
		}
		figures = append(figures, figure{"TCP connect, request, close through a NodePort, tc", r.Ratio, "ratio", "routed to the pod, ns", r.Base, 0, true})
		return nil
	})
	return figures, err
}

// serveNodePort does what an agent does on a node with one Service.
func serveNodePort(n *world.Node, endpoint netip.Addr) (stop func(), err error) {
	barrier, err := maps.NewBarrier()
	if err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		l, err := loader.Open(loader.Config{BPFFSRoot: n.BPFFS(), CgroupRoot: n.CgroupRoot()})
		if err != nil {
			return err
		}
		stop = func() {
			l.Close()
			_ = n.Do(func() error { _, err := loader.Cleanup(n.BPFFS(), false); return err })
			barrier.Close()
		}
		facts, err := node.Read()
		if err != nil {
			return err
		}
		r, err := reconcile.New(reconcile.Config{Attach: l.Attach, Wait: barrier.Wait, Node: reconcile.Node{
			NodePortAddrs: node.Selection{}.NodePortAddrs(facts, nil), Source4: n.IPv4(), Source6: n.IPv6(),
			Masquerade: reconcile.PortRange{First: 49152, Last: 65535},
		}})
		if err != nil {
			return err
		}
		compiler := compile.New(compile.Config{Node: service.Node{Name: n.Name()}})
		if err := r.Apply(compiler.Apply(nodePortService(n.Name(), endpoint))); err != nil {
			return err
		}
		links, err := node.ReadLinks()
		if err != nil {
			return err
		}
		var devices []loader.Device
		for _, l := range node.Outward(links, nil) {
			devices = append(devices, loader.Device{Index: l.Index, Name: l.Name, LinkHeader: l.LinkHeader})
		}
		for _, d := range l.SetDevices(devices) {
			if d.Problem != "" {
				return fmt.Errorf("device %s: %s", d.Name, d.Problem)
			}
		}
		return nil
	})
	return stop, err
}

func nodePortService(nodeName string, endpoint netip.Addr) compile.Update {
	name := service.Name{Namespace: "bench", Name: "nodeport"}
	return compile.Update{
		Services: map[service.Name]*service.Service{name: {
			Name: name, Type: service.NodePort, ClusterIPs: []netip.Addr{vip(1)},
			Ports: []service.Port{{Name: "tcp", Protocol: service.TCP, Port: 80, NodePort: 30080}, {Name: "udp", Protocol: service.UDP, Port: 80, NodePort: 30080}},
		}},
		Slices: map[service.Name]*service.EndpointSlice{name: {
			Name: name, Service: name.Name, Family: service.IPv4,
			Ports:     []service.SlicePort{{Name: "tcp", Protocol: service.TCP, Port: 8080}, {Name: "udp", Protocol: service.UDP, Port: 8080}},
			Endpoints: []service.Endpoint{{Addr: endpoint, Ready: true, Serving: true, NodeName: nodeName}},
		}},
	}
}
