// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
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
		go answer(l)
	}
	stop, err := serveNodePort(n, pod.IPv4())
	if err != nil {
		return nil, err
	}
	defer stop()
	direct := netip.AddrPortFrom(pod.IPv4(), 8080).String()
	through := netip.AddrPortFrom(n.IPv4(), 30080).String()
	err = client.Do(func() error {
		if err := routeTo(n); err != nil {
			return err
		}
		ratio, base, err := paired("udp4", direct, through, func(c net.Conn) (float64, error) { return pingPong(c, datagrams) })
		if err != nil {
			return fmt.Errorf("UDP ping-pong: %w", err)
		}
		figures = append(figures, figure{"UDP ping-pong through a NodePort, tc", ratio, "ratio", "routed to the pod, ns", base, 0, true})
		ratio, base, err = requests(netip.AddrPortFrom(pod.IPv4(), 8081).String(), through)
		if err != nil {
			return fmt.Errorf("TCP connect, request, close: %w", err)
		}
		figures = append(figures, figure{"TCP connect, request, close through a NodePort, tc", ratio, "ratio", "routed to the pod, ns", base, 0, true})
		return nil
	})
	return figures, err
}

// routeTo makes this namespace send to the node's pods by the node.
func routeTo(n *world.Node) error {
	pods, _ := n.PodCIDRs()
	return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: pods.Addr().AsSlice(), Mask: net.CIDRMask(pods.Bits(), 32)}, Gw: n.IPv4().AsSlice()})
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

// answer sends one byte back on every connection.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var b [1]byte
		if _, err := c.Read(b[:]); err == nil {
			_, _ = c.Write(b[:])
		}
		c.Close()
	}
}

// requests alternates connections to both addresses.
func requests(direct, through string) (ratio, base float64, err error) {
	const block = 50
	sample := func(addr string) (float64, error) {
		begin := time.Now()
		for range block {
			c, err := net.Dial("tcp4", addr)
			if err != nil {
				return 0, err
			}
			b := []byte{1}
			_, err1 := c.Write(b)
			_, err2 := c.Read(b)
			if err := errors.Join(err1, err2, c.Close()); err != nil {
				return 0, err
			}
		}
		return float64(time.Since(begin).Nanoseconds()) / block, nil
	}
	var left, right []float64
	for range 2 * rounds {
		x, err1 := sample(direct)
		y, err2 := sample(through)
		if err := errors.Join(err1, err2); err != nil {
			return 0, 0, err
		}
		left, right = append(left, x), append(right, y)
	}
	return median(right) / median(left), median(left), nil
}
