// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/test/world"
)

func clusterIPSpreads(s *space) {
	const dials, replicas = 300, 3
	svc := s.service("web")
	s.deployment("web", replicas)
	vip := hostPort(svc.Spec.ClusterIP, 80)
	pods := s.podNames("app=web")
	s.answeredBy("tcp", vip, pods...)
	for _, client := range s.clients() {
		report, err := client.DialMany("tcp", vip, dials)
		s.must(err)
		if report.Failed > 0 {
			s.t.Errorf("%d of %d dials failed; the first: %s", report.Failed, dials, report.Failures[0])
		}
		for _, pod := range pods {
			// Equal shares give 100 with a standard deviation of 8; half of
			// that is six deviations away.
			if n := report.Backends[pod]; n < dials/replicas/2 {
				s.t.Errorf("%s got %d of %d connections: %v", pod, n, dials, report.Backends)
			}
		}
	}
}

func serviceCreatedAgain(s *space) {
	s.pod("one", map[string]string{"app": "web"})
	first := s.service("web").Spec.ClusterIP
	s.answeredBy("tcp", hostPort(first, 80), "one")

	s.deleteService("web")
	s.fails("tcp", hostPort(first, 80), syscall.ENETUNREACH)

	// Held by another Service, the old address cannot be given out again.
	s.service("holder", func(svc *corev1.Service) { svc.Spec.ClusterIP = first })
	second := s.service("web").Spec.ClusterIP
	s.answeredBy("tcp", hostPort(second, 80), "one")
	s.refused("tcp", hostPort(first, 80))

	s.deleteService("holder")
	s.deleteService("web")
	s.service("web", func(svc *corev1.Service) { svc.Spec.ClusterIP = first })
	s.answeredBy("tcp", hostPort(first, 80), "one")
	s.fails("tcp", hostPort(second, 80), syscall.ENETUNREACH)
}

func affinityHolds(s *space) {
	s.deployment("web", 3)
	vip := hostPort(s.service("web", func(svc *corev1.Service) {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}).Spec.ClusterIP, 80)
	for _, client := range s.pods {
		s.eventually(func() error {
			_, err := answers(client, "tcp", vip, 1)
			return err
		})
		got, err := answers(client, "tcp", vip, 100)
		s.must(err)
		if len(got) != 1 {
			s.t.Errorf("one client is answered by %v, want one pod", got)
		}
	}
}

func localPolicy(s *space) {
	policy := corev1.ServiceInternalTrafficPolicyLocal
	svc := s.service("web", func(svc *corev1.Service) { svc.Spec.InternalTrafficPolicy = &policy })
	vip := hostPort(svc.Spec.ClusterIP, 80)
	s.refused("tcp", vip)

	s.createPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "far", Labels: svc.Spec.Selector},
		Spec:       onNode("node2", podSpec(container("web", webPort))),
	})
	here, there := s.pods[0], s.pods[1]
	s.clientAnsweredBy(there, "tcp", vip, []string{"far"})
	s.eventually(func() error { return notRefused(here.Dial("tcp", vip, world.Timeout(impatient))) })
	if s.portolan() {
		s.failsWith(here, "tcp", vip, syscall.EHOSTUNREACH)
	}

	s.createPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "near", Labels: svc.Spec.Selector},
		Spec:       onNode("node1", podSpec(container("web", webPort))),
	})
	s.clientAnsweredBy(here, "tcp", vip, []string{"near"})
	s.clientAnsweredBy(there, "tcp", vip, []string{"far"})
}
