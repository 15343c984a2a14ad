// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"portolan.dev/portolan/test/world"
)

// withNodePort makes a Service of service() one of type NodePort for TCP and UDP.
func withNodePort(svc *corev1.Service) {
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{
		Name: "datagrams", Port: 80, TargetPort: intstr.FromInt32(8081), Protocol: corev1.ProtocolUDP,
	})
}

// bothProtocols is a container for such a Service.
func bothProtocols() corev1.Container {
	return container("web", webPort, corev1.ContainerPort{ContainerPort: 8081, Protocol: corev1.ProtocolUDP})
}

// loads is constant requests by every way to a Service: from pods to its
// ClusterIP over TCP and UDP, from outside to its NodePorts on every node over
// TCP.
//
// From outside, a UDP socket that happens to get the port of an earlier one is
// the same flow, and stays with an endpoint that terminates until that is gone:
// no dataplane can tell them apart.
type loads []*load

func (s *space) startLoads(svc *corev1.Service) loads {
	s.t.Helper()
	var out loads
	for _, port := range svc.Spec.Ports {
		proto := map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp"}[port.Protocol]
		out = append(out, s.startLoad(proto, hostPort(svc.Spec.ClusterIP, port.Port)))
		if proto == "udp" {
			continue
		}
		for _, n := range s.Nodes {
			addr := hostPort(n.IPv4().String(), port.NodePort)
			s.eventually(func() error { return s.outside.Dial(proto, addr, world.Timeout(impatient)).Err() })
			out = append(out, s.startLoadFrom([]*world.Probe{s.outside}, proto, addr))
		}
	}
	return out
}

func (l loads) goOn(n int) {
	for _, one := range l {
		one.s.t.Helper()
		one.goesOn(n)
	}
}

func (l loads) stopWithoutFailure() {
	for _, one := range l {
		one.s.t.Helper()
		one.stopWithoutFailure()
	}
}

func drainFailsNoRequest(s *space) {
	s.deploymentOf("web", 4, bothProtocols())
	svc := s.service("web", withNodePort)
	vip := hostPort(svc.Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, s.podNames("app=web")...)
	l := s.startLoads(svc)
	for _, n := range s.Nodes {
		s.cordon(n.Name(), true)
		evicted := s.evict(n.Name())
		s.eventually(func() error { return s.gone(evicted) })
		s.rolledOut("web")
		s.answeredBy("tcp", vip, s.podNames("app=web")...)
		s.cordon(n.Name(), false)
		l.goOn(20)
	}
	l.stopWithoutFailure()
}

// cordon has a node get no new pods, or get them again.
func (s *space) cordon(node string, closed bool) {
	s.t.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%t}}`, closed)
	_, err := s.client.CoreV1().Nodes().Patch(s.ctx, node, mergePatch, patch, metav1.PatchOptions{})
	s.must(err)
}

// evict ends all pods of a node as a drain does, and names them.
func (s *space) evict(node string) (names []string) {
	s.t.Helper()
	pods, err := s.client.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	s.must(err)
	for i := range pods.Items {
		name := pods.Items[i].Name
		s.must(s.client.PolicyV1().Evictions(s.ns).Evict(s.ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: name}}))
		names = append(names, name)
	}
	if len(names) == 0 {
		s.t.Fatalf("no pod was on %s: nothing would be shown", node)
	}
	return names
}

func (s *space) gone(pods []string) error {
	for _, name := range pods {
		if _, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("pod %s is there: %v", name, err)
		}
	}
	return nil
}

func scalingFailsNoRequest(s *space) {
	s.deploymentOf("web", 2, bothProtocols())
	svc := s.service("web", withNodePort)
	vip := hostPort(svc.Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, s.podNames("app=web")...)
	l := s.startLoads(svc)
	for _, replicas := range []int32{6, 1, 3} {
		s.scale("web", replicas)
		s.answeredBy("tcp", vip, s.podNames("app=web")...)
		l.goOn(10)
	}
	l.stopWithoutFailure()
}

func scaledToZeroAndBackDisturbsNobody(s *space) {
	s.deploymentOf("web", 2, bothProtocols())
	s.deploymentOf("other", 2, bothProtocols())
	web, other := s.service("web", withNodePort), s.service("other", withNodePort)
	s.answeredBy("tcp", hostPort(other.Spec.ClusterIP, 80), s.podNames("app=other")...)
	l := s.startLoads(other)
	addr := hostPort(s.Nodes[0].IPv4().String(), web.Spec.Ports[0].NodePort)
	for range 2 {
		s.scale("web", 0)
		s.refused("tcp", hostPort(web.Spec.ClusterIP, 80))
		s.failsWith(s.outside, "tcp", addr, refusedErrno)
		s.scale("web", 2)
		s.answeredBy("tcp", hostPort(web.Spec.ClusterIP, 80), s.podNames("app=web")...)
		s.clientAnsweredBy(s.outside, "tcp", addr, s.podNames("app=web"))
	}
	l.stopWithoutFailure()
}

func recreatedServiceKeepsItsAddress(s *space) {
	s.deploymentOf("web", 2, bothProtocols())
	s.deploymentOf("other", 2, bothProtocols())
	svc, other := s.service("web", withNodePort), s.service("other", withNodePort)
	vip, nodePort := svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort
	outside := hostPort(s.Nodes[1].IPv4().String(), nodePort)
	s.answeredBy("tcp", hostPort(vip, 80), s.podNames("app=web")...)
	l := s.startLoads(other)
	for range 3 {
		s.deleteService("web")
		s.fails("tcp", hostPort(vip, 80), unreachableErrno)
		s.service("web", withNodePort, func(again *corev1.Service) {
			again.Spec.ClusterIP, again.Spec.Ports[0].NodePort = vip, nodePort
		})
		s.answeredBy("tcp", hostPort(vip, 80), s.podNames("app=web")...)
		s.clientAnsweredBy(s.outside, "tcp", outside, s.podNames("app=web"))
	}
	l.stopWithoutFailure()
}
