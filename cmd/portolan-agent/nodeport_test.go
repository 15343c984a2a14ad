// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// shopService is a Service with NodePorts of TCP and UDP.
func shopService(nodePort int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: store, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.41
  clusterIPs: [10.96.0.41, "fd00:10:96::41"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: http, port: 80, nodePort: %d}
  - {name: quic, port: 80, nodePort: %d, protocol: UDP}
---
`, nodePort, nodePort)
}

// holders are the problems of NodePorts that a socket holds, as portolan status
// shows them.
func (s *stage) holders() ([]service.Problem, error) {
	status, err := api.NewClient(s.node.Socket(), 10*time.Second).Status()
	if err != nil {
		return nil, err
	}
	if !status.Synced {
		return nil, errors.New("not synced")
	}
	var out []service.Problem
	for _, p := range status.Problems {
		if p.Reason == service.ReasonNodePortHeld {
			out = append(out, p)
		}
	}
	return out, nil
}

// reported waits until exactly these texts are in the problems, one each.
func (s *stage) reported(texts ...string) {
	s.t.Helper()
	s.wait(func() error {
		problems, err := s.holders()
		if err != nil {
			return err
		}
		if len(problems) != len(texts) {
			return fmt.Errorf("problems %v, want %q", problems, texts)
		}
		for i, text := range texts {
			if problems[i].Object != "Service shop/store" || !strings.HasPrefix(problems[i].Message, text) {
				return fmt.Errorf("problems %v, want %q", problems, texts)
			}
			if !strings.Contains(s.agent.Output(), text) {
				return fmt.Errorf("the log does not say %q", text)
			}
		}
		return nil
	})
}

// A socket that has a NodePort before the Service comes, or before the agent
// does, is named until it is gone; one that comes later does not get the port.
func TestASocketThatHoldsANodePortIsReported(t *testing.T) {
	t.Parallel()
	s := newStageWithout(t, nodeManifest+shopService(30080))
	var tcp net.Listener
	var udp net.PacketConn
	err := s.node.Do(func() (err error) {
		if tcp, err = net.Listen("tcp", "[::]:30080"); err == nil {
			udp, err = net.ListenPacket("udp4", "192.168.100.1:30080")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	defer udp.Close()
	s.start()
	const (
		onTCP = "nodePort 30080/TCP is held by a socket of this node on [::]:30080: "
		onUDP = "nodePort 30080/UDP is held by a socket of this node on 192.168.100.1:30080: "
	)
	s.reported(onTCP, onUDP)
	s.write("all.yaml", nodeManifest+shopService(30090))
	s.reported()
	// The Service comes to a port that is held, while the agent runs.
	s.write("all.yaml", nodeManifest+shopService(30080))
	s.reported(onTCP, onUDP)
	tcp.Close()
	s.reported(onUDP)
	udp.Close()
	s.reported()
	if !strings.Contains(s.agent.Output(), "mended: "+onTCP) {
		t.Error("the log does not say that it is mended")
	}
	late := world.Must(world.Must(s.node.Host("late"))(t).Probe())(t)
	if r := late.Bind("tcp", netip.MustParseAddrPort("0.0.0.0:30080").String()); r.Errno != unix.EADDRINUSE {
		t.Errorf("a bind after the Service: %v, want EADDRINUSE", r)
	}
}

// An endpoint in the host's network may listen on its Service's NodePort.
func TestAnEndpointThatListensOnItsNodePortHoldsNothing(t *testing.T) {
	t.Parallel()
	const slice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: store-4, namespace: shop, labels: {kubernetes.io/service-name: store}}
addressType: IPv4
ports: [{name: http, port: 30080}]
endpoints: [{addresses: [192.168.100.1], conditions: {ready: true}, nodeName: here}]
---
`
	s := newStageWithout(t, nodeManifest+shopService(30080)+slice)
	var own, other net.Listener
	err := s.node.Do(func() (err error) {
		if own, err = net.Listen("tcp4", "0.0.0.0:30080"); err == nil {
			other, err = net.Listen("tcp6", "[::1]:30080")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	defer other.Close()
	s.start()
	s.reported("nodePort 30080/TCP is held by a socket of this node on [::1]:30080: ")
}
