// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func namedPortsDifferPerPod(s *space) {
	labels := map[string]string{"app": "web"}
	twoPorts := func(http, metrics int32) []corev1.Container {
		return []corev1.Container{
			container("front", corev1.ContainerPort{Name: "http", ContainerPort: http}),
			container("stats", corev1.ContainerPort{Name: "metrics", ContainerPort: metrics}),
		}
	}
	s.pod("one", labels, twoPorts(8080, 9090)...)
	s.pod("two", labels, twoPorts(8081, 9091)...)
	svc := s.service("web", func(svc *corev1.Service) {
		svc.Spec.Ports = []corev1.ServicePort{
			{Name: "web", Port: 80, TargetPort: intstr.FromString("http")},
			{Name: "stats", Port: 8081, TargetPort: intstr.FromString("metrics")},
		}
	})
	s.answeredBy("tcp", hostPort(svc.Spec.ClusterIP, 80), "one/front", "two/front")
	// 8081 is also a number that a pod listens on: it must not shine through.
	s.answeredBy("tcp", hostPort(svc.Spec.ClusterIP, 8081), "one/stats", "two/stats")
}

func protocolsAreApart(s *space) {
	s.pod("one", map[string]string{"app": "web"},
		container("stream", corev1.ContainerPort{ContainerPort: 8080}),
		container("datagram", corev1.ContainerPort{ContainerPort: 9090, Protocol: corev1.ProtocolUDP}))
	svc := s.service("web", func(svc *corev1.Service) {
		svc.Spec.Ports = []corev1.ServicePort{
			{Name: "tcp", Port: 53, TargetPort: intstr.FromInt32(8080)},
			{Name: "udp", Port: 53, TargetPort: intstr.FromInt32(9090), Protocol: corev1.ProtocolUDP},
			{Name: "only-tcp", Port: 54, TargetPort: intstr.FromInt32(8080)},
		}
	})
	s.answeredBy("tcp", hostPort(svc.Spec.ClusterIP, 53), "one/stream")
	s.answeredBy("udp", hostPort(svc.Spec.ClusterIP, 53), "one/datagram")
	s.answeredBy("tcp", hostPort(svc.Spec.ClusterIP, 54), "one/stream")
	s.fails("udp", hostPort(svc.Spec.ClusterIP, 54), syscall.ECONNREFUSED)
}

func portsComeAndGo(s *space) {
	s.pod("one", map[string]string{"app": "web"})
	vip := s.service("web").Spec.ClusterIP
	s.answeredBy("tcp", hostPort(vip, 80), "one")
	s.refused("tcp", hostPort(vip, 81))

	s.editService("web", func(svc *corev1.Service) {
		svc.Spec.Ports = append(svc.Spec.Ports,
			corev1.ServicePort{Name: "more", Port: 81, TargetPort: intstr.FromInt32(8080)})
	})
	s.answeredBy("tcp", hostPort(vip, 81), "one")
	s.answeredBy("tcp", hostPort(vip, 80), "one")

	s.editService("web", func(svc *corev1.Service) { svc.Spec.Ports = svc.Spec.Ports[1:] })
	s.refused("tcp", hostPort(vip, 80))
	s.answeredBy("tcp", hostPort(vip, 81), "one")
}
