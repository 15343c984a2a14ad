// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"portolan.dev/portolan/test/k8s/cluster"
)

const (
	mergePatch       = types.MergePatchType
	refusedErrno     = syscall.ECONNREFUSED
	unreachableErrno = syscall.ENETUNREACH
)

// healthOf asks a node's health check port as a load balancer does.
func (s *space) healthOf(n *cluster.Node, port int32) (status int, endpoints int, err error) {
	client := http.Client{Timeout: impatient, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = s.Outside.Do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	r, err := client.Get("http://" + hostPort(n.IPv4().String(), port))
	if err != nil {
		return 0, 0, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, 0, err
	}
	var answer struct {
		Service        struct{ Namespace, Name string }
		LocalEndpoints int
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", body, err)
	}
	if answer.Service.Namespace != s.ns || answer.Service.Name != "web" {
		err = fmt.Errorf("it tells of Service %+v", answer.Service)
	}
	return r.StatusCode, answer.LocalEndpoints, err
}

func healthCheckPortFollowsLocalPods(s *space) {
	s.deploymentOf("web", 4, bothProtocols())
	s.service("web", withNodePort, func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	})
	svc, err := s.client.CoreV1().Services(s.ns).Get(s.ctx, "web", metav1.GetOptions{})
	s.must(err)
	port := svc.Spec.HealthCheckNodePort
	says := func(n *cluster.Node, status, endpoints int) {
		s.t.Helper()
		s.eventually(func() error {
			gotStatus, got, err := s.healthOf(n, port)
			if err == nil && (gotStatus != status || got != endpoints) {
				err = fmt.Errorf("%s answers %d with %d local endpoints, want %d with %d", n.Name(), gotStatus, got, status, endpoints)
			}
			return err
		})
	}
	on := func(n *cluster.Node) int {
		list, err := s.client.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.Name()})
		s.must(err)
		return len(list.Items)
	}
	for _, n := range s.Nodes {
		says(n, 200, on(n))
	}
	s.cordon("node1", true)
	s.t.Cleanup(func() { // also when this fails: others need the node
		_, err := s.Client.CoreV1().Nodes().Patch(context.WithoutCancel(s.ctx), "node1", mergePatch, []byte(`{"spec":{"unschedulable":false}}`), metav1.PatchOptions{})
		if err != nil {
			s.t.Error(err)
		}
	})
	s.evict("node1")
	says(s.Nodes[0], 503, 0)
	says(s.Nodes[1], 200, 4)
}

func conflictIsToldByAnEvent(s *space) {
	const external = "198.51.100.77"
	s.pod("one", map[string]string{"app": "first"})
	s.pod("two", map[string]string{"app": "second"})
	withExternal := func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{external} }
	s.service("first", withExternal)
	s.answeredBy("tcp", hostPort(external, 80), "one")
	s.service("second", withExternal)
	s.toldByAnEvent(func(e *eventsv1.Event) bool { return s.tellsOfConflict(e, external) })
	s.answeredBy("tcp", hostPort(external, 80), "one")
	// Who waited takes over.
	s.deleteService("first")
	s.answeredBy("tcp", hostPort(external, 80), "two")
}

// tellsOfConflict: the Event is on the Service that does not get the address,
// and names the address and who has it.
func (s *space) tellsOfConflict(e *eventsv1.Event, addr string) bool {
	return e.Type == corev1.EventTypeWarning && e.Regarding.Kind == "Service" && e.Regarding.Name == "second" &&
		e.Regarding.Namespace == s.ns && strings.Contains(e.Note, addr) && strings.Contains(e.Note, s.ns+"/first")
}

func heldNodePortIsToldByAnEvent(s *space) {
	if !s.portolan() {
		s.t.Skip("kube-proxy does not mind who has a NodePort")
	}
	const port = 30007 // of those that are given out on request only
	conn, r := s.hosts[0].Hold("udp", fmt.Sprintf("0.0.0.0:%d", port))
	s.must(r.Err())
	defer conn.Close()
	s.service("web", withNodePort, func(svc *corev1.Service) { svc.Spec.Ports[1].NodePort = port })
	s.toldByAnEvent(func(e *eventsv1.Event) bool {
		return e.Type == corev1.EventTypeWarning && e.Reason == "NodePortHeld" && e.Regarding.Name == "web" &&
			strings.Contains(e.Note, fmt.Sprintf("%d/UDP", port)) && e.ReportingInstance == s.Nodes[0].Name()
	})
}

// toldByAnEvent waits for an Event in the namespace.
func (s *space) toldByAnEvent(wanted func(*eventsv1.Event) bool) {
	s.t.Helper()
	s.eventually(func() error {
		list, err := s.client.EventsV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if wanted(&list.Items[i]) {
				return nil
			}
		}
		return fmt.Errorf("none of %d events tells of it", len(list.Items))
	})
}
