// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/test/k8s/cluster"
	"portolan.dev/portolan/test/paths"
	"portolan.dev/portolan/test/world"
)

// samples of each way through a NodePort.
const samples = 60

// server is a pod that answers the measuring process, which is its other end.
type server struct {
	addr      netip.Addr
	streams   net.Listener
	datagrams *net.UDPConn
}

func serve(n *cluster.Node, name string) (*server, error) {
	pod, err := n.AddPod(name)
	if err != nil {
		return nil, err
	}
	s := &server{addr: pod.IPv4()}
	err = pod.Do(func() error {
		addr := netip.AddrPortFrom(s.addr, backendPort)
		var err1, err2 error
		s.streams, err1 = net.Listen("tcp4", addr.String())
		s.datagrams, err2 = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
		return errors.Join(err1, err2)
	})
	if err != nil {
		return nil, err
	}
	go paths.Answer(s.streams)
	return s, nil
}

func (s *server) close() {
	s.streams.Close()
	s.datagrams.Close()
}

// nodePort compares, for a machine outside, the NodePort of a pod on a node
// whose dataplane runs with the way to a pod that a node without one routes.
func (b *bench) nodePort(ctx context.Context, n *cluster.Node) (udp, tcp paths.Ratio, err error) {
	bare := b.cluster.Nodes[1]
	direct, err := serve(bare, "routed-"+n.Name())
	if err != nil {
		return udp, tcp, err
	}
	defer direct.close()
	behind, err := serve(n, "behind-"+n.Name())
	if err != nil {
		return udp, tcp, err
	}
	defer behind.close()
	port, err := b.createNodePort(ctx, "nodeport-"+n.Name(), behind.addr)
	if err != nil {
		return udp, tcp, err
	}
	by := func(s *server, addr netip.Addr, port uint16) paths.Way {
		return paths.Way{Addr: netip.AddrPortFrom(addr, port).String(), Server: s.datagrams}
	}
	routed, through := by(direct, direct.addr, backendPort), by(behind, n.IPv4(), port)
	pods, _ := bare.PodCIDRs()
	if err := b.cluster.Outside.RouteBy(bare.Node, pods.String()); err != nil {
		return udp, tcp, err
	}
	err = b.cluster.Outside.Do(func() error {
		if err := answered(through.Addr); err != nil {
			return err
		}
		if udp, err = paths.Open(samples, "udp4", routed, through, paths.PingPong); err != nil {
			return fmt.Errorf("UDP ping-pong: %w", err)
		}
		tcp, err = paths.Requests(samples, routed, through)
		return err
	})
	return udp, tcp, err
}

// answered waits until a new NodePort works.
func answered(addr string) error {
	return world.Wait(time.Minute, func() error {
		c, err := net.DialTimeout("tcp4", addr, time.Second)
		if err != nil {
			return err
		}
		_, err1 := c.Write([]byte{1})
		_, err2 := c.Read(make([]byte, 1))
		return errors.Join(err1, err2, c.Close())
	})
}

// createNodePort creates a Service of one endpoint and returns its NodePort,
// the same for TCP and UDP.
func (b *bench) createNodePort(ctx context.Context, name string, endpoint netip.Addr) (uint16, error) {
	ports := []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: servicePort}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: servicePort}}
	svc, err := b.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: ports},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, fmt.Errorf("create service %s: %w", name, err)
	}
	es := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "bench",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{endpoint.String()}}},
	}
	port := int32(backendPort)
	for i := range ports {
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: &ports[i].Name, Port: &port, Protocol: &ports[i].Protocol})
	}
	if _, err := b.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, es, metav1.CreateOptions{}); err != nil {
		return 0, fmt.Errorf("create endpoint slice %s: %w", name, err)
	}
	if svc.Spec.Ports[0].NodePort != svc.Spec.Ports[1].NodePort {
		return 0, fmt.Errorf("service %s has NodePorts %d and %d, want one", name, svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort)
	}
	return uint16(svc.Spec.Ports[0].NodePort), nil
}
