// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"encoding/json"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func dualStackAnswers(s *space) {
	s.deployment("web", 2)
	pods := s.podNames("app=web")
	policy := corev1.IPFamilyPolicyRequireDualStack
	for name, families := range map[string][]corev1.IPFamily{
		"four-first": {corev1.IPv4Protocol, corev1.IPv6Protocol},
		"six-first":  {corev1.IPv6Protocol, corev1.IPv4Protocol},
	} {
		svc := s.service(name, func(svc *corev1.Service) {
			svc.Spec.Selector = map[string]string{"app": "web"}
			svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = &policy, families
		})
		if len(svc.Spec.ClusterIPs) != len(families) {
			s.t.Fatalf("%s has addresses %v, want one of each family", name, svc.Spec.ClusterIPs)
		}
		for _, vip := range svc.Spec.ClusterIPs {
			s.answeredBy("tcp", hostPort(vip, 80), pods...)
		}
	}
}

func nodePortAnswersNode(s *space) {
	s.deployment("web", 2)
	pods := s.podNames("app=web")
	policy := corev1.IPFamilyPolicyRequireDualStack
	svc := s.service("web", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.IPFamilyPolicy = corev1.ServiceTypeNodePort, &policy
	})
	port := svc.Spec.Ports[0].NodePort
	s.answeredBy("tcp", hostPort(svc.Spec.ClusterIP, 80), pods...)
	for i, n := range s.Nodes {
		addrs := []string{n.IPv4().String(), n.IPv6().String()}
		if s.portolan() { // kube-proxy's nftables mode leaves loopback alone.
			addrs = append(addrs, "127.0.0.1", "::1")
		}
		for _, a := range addrs {
			s.clientAnsweredBy(s.hosts[i], "tcp", hostPort(a, port), pods)
		}
		s.clientAnsweredBy(s.pods[i], "tcp", hostPort(n.IPv4().String(), port), pods)
	}
}

func externalAddressesAnswer(s *space) {
	const external, ingress, proxied = "198.51.100.10", "198.51.100.20", "198.51.100.30"
	s.pod("one", map[string]string{"app": "web"})
	s.service("web", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalIPs = corev1.ServiceTypeLoadBalancer, []string{external}
	})
	s.answeredBy("tcp", hostPort(external, 80), "one")

	vip, proxy := corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy
	patch, err := json.Marshal(map[string]any{"status": corev1.ServiceStatus{
		LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: ingress, IPMode: &vip}, {IP: proxied, IPMode: &proxy},
		}},
	}})
	s.must(err)
	_, err = s.client.CoreV1().Services(s.ns).Patch(s.ctx, "web", types.MergePatchType, patch,
		metav1.PatchOptions{}, "status")
	s.must(err)
	s.answeredBy("tcp", hostPort(ingress, 80), "one")
	// The load balancer behind this one wants to see the connection itself,
	// and in this world nothing answers there.
	for _, client := range s.pods {
		s.failsWith(client, "tcp", hostPort(proxied, 80), syscall.ETIMEDOUT)
	}
}
