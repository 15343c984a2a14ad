// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// attachPods serves the devices of this node's pods, too, as with --pod-devices
// veth*.
func (s *stage) attachPods(n *dataplane) {
	s.t.Helper()
	err := n.Do(func() error {
		links, err := node.ReadLinks()
		if err != nil {
			return err
		}
		var devices []loader.Device
		for _, l := range node.Outward(links, nil) {
			devices = append(devices, loader.Device{Index: l.Index, Name: l.Name, LinkHeader: l.LinkHeader})
		}
		for _, l := range node.Matching(links, []string{"veth*"}) {
			devices = append(devices, loader.Device{Index: l.Index, Name: l.Name, LinkHeader: l.LinkHeader, Pod: true})
		}
		for _, d := range n.loader.SetDevices(devices) {
			if d.Problem != "" {
				s.t.Errorf("device %+v", d)
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// unseen dials from a pod's namespace, but not from its cgroup: no socket
// program sees it, as with a virtual machine in the pod.
func unseen(pod *world.Pod, proto, addr string) (conn net.Conn, err error) {
	err = pod.Do(func() error {
		conn, err = (&net.Dialer{Timeout: world.Scaled(short)}).Dial(proto, addr)
		return err
	})
	return conn, err
}

var clusterIPs = []string{"10.96.0.10:80", "[fd00:10:96::10]:80"}

func TestPodsWhoseSocketsAreNotSeenReachServicesByTheirDevices(t *testing.T) {
	for _, m := range some(t, modes[:2]...) { // pods' devices have no XDP program
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m)
			client, near, far := s.echo(s.here, "client1"), s.echo(s.here, "echo1"), s.echo(s.there, "echo2")
			s.attachPods(s.here)
			svc := webService()
			for what, pod := range map[string]*world.Pod{"here": near, "elsewhere": far, "the client itself": client} {
				s.serve(svc, pod)
				for _, addr := range append([]string{"203.0.113.10:80", "[2001:db8:1b::10]:80"}, clusterIPs...) {
					for _, proto := range []string{"tcp", "udp"} {
						conn, err := unseen(client, proto, addr)
						if err == nil {
							err = bounceOver(conn, random(1000))
						}
						if err != nil {
							t.Errorf("%s %s, endpoint %s: %v", proto, addr, what, err)
						}
					}
				}
			}
		})
	}
}

func TestPodDevicesHaveThePoliciesOfTheInside(t *testing.T) {
	s := newStage(t, modes[0])
	client, near := s.echo(s.here, "client1"), s.echo(s.here, "echo1")
	s.attachPods(s.here)
	svc := webService()
	svc.InternalLocal = true
	s.serve(svc, near, s.far[0])
	for range 20 {
		conn, err := unseen(client, "tcp", clusterIPs[0])
		if err == nil { // the far pod would not echo
			err = bounceOver(conn, random(100))
		}
		if err != nil {
			t.Fatalf("policy Local with an endpoint here: %v", err)
		}
	}
	svc.InternalLocal = false
	s.serve(svc)
	if _, err := unseen(client, "tcp", clusterIPs[0]); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("without endpoints: %v, want a refusal", err)
	}
	s.serve(&service.Service{Name: web, Type: service.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Ports: []service.Port{{Name: "tcp", Protocol: service.TCP, Port: 80}}}, near)
	if conn, err := unseen(client, "tcp", clusterIPs[0]); err != nil {
		t.Errorf("a Service for the inside only: %v", err)
	} else if err := bounceOver(conn, random(100)); err != nil {
		t.Errorf("a Service for the inside only: %v", err)
	}
}

func TestPodDevicesComeAndGo(t *testing.T) {
	s := newStage(t, modes[0])
	near := s.echo(s.here, "echo1")
	s.serve(webService(), near)
	s.attachPods(s.here)
	before := s.here.loader.DeviceStatus()
	late := s.echo(s.here, "late")
	if conn, err := unseen(late, "tcp", clusterIPs[0]); err == nil {
		conn.Close()
		t.Error("a pod whose device is not served yet is served")
	}
	s.attachPods(s.here)
	conn, err := unseen(late, "tcp", clusterIPs[0])
	if err == nil {
		err = bounceOver(conn, random(100))
	}
	if err != nil {
		t.Errorf("a pod that came later: %v", err)
	}
	if err := late.Remove(); err != nil {
		t.Fatal(err)
	}
	s.attachPods(s.here)
	if after := s.here.loader.DeviceStatus(); len(after) != len(before) {
		t.Errorf("devices after a pod came and went: %+v, before %+v", after, before)
	}
}
