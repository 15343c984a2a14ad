// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"fmt"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/test/world"
)

func selectorChanges(s *space) {
	s.pod("plain", map[string]string{"app": "web"})
	s.pod("blue", map[string]string{"app": "web", "colour": "blue"})
	s.pod("green", map[string]string{"app": "web", "colour": "green"})
	vip := hostPort(s.service("web", func(svc *corev1.Service) {
		svc.Spec.Selector = map[string]string{"app": "web", "colour": "blue"}
	}).Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, "blue")

	s.editService("web", func(svc *corev1.Service) { svc.Spec.Selector["colour"] = "green" })
	s.answeredBy("tcp", vip, "green")

	s.editService("web", func(svc *corev1.Service) { delete(svc.Spec.Selector, "colour") })
	s.answeredBy("tcp", vip, "plain", "blue", "green")
}

// withoutSelector makes a Service whose slices are written by hand.
func withoutSelector(svc *corev1.Service) { svc.Spec.Selector = nil }

func handMadeSlices(s *space) {
	s.pod("one", nil)
	s.pod("two", nil)
	s.pod("three", nil, container("web", corev1.ContainerPort{ContainerPort: 9999}))
	one, two, three := s.podIP("one"), s.podIP("two"), s.podIP("three")
	vip := hostPort(s.service("web", withoutSelector).Spec.ClusterIP, 80)
	s.refused("tcp", vip)

	s.slice("web-a", "web", 8080, []string{one})
	s.answeredBy("tcp", vip, "one")
	// Slices of one Service add up, whatever port each has; an endpoint that
	// two of them name is one endpoint.
	s.slice("web-b", "web", 9999, []string{three})
	s.slice("web-c", "web", 8080, []string{one, two})
	s.answeredBy("tcp", vip, "one", "two", "three")

	s.editSlice("web-c", func(es *discoveryv1.EndpointSlice) {
		ready := false
		es.Endpoints[1].Conditions.Ready = &ready
	})
	s.answeredBy("tcp", vip, "one", "three")
	s.must(s.client.DiscoveryV1().EndpointSlices(s.ns).Delete(s.ctx, "web-b", metav1.DeleteOptions{}))
	s.answeredBy("tcp", vip, "one")
}

func headlessIsNotTranslated(s *space) {
	s.pod("one", map[string]string{"app": "quiet"})
	s.service("quiet", func(svc *corev1.Service) { svc.Spec.ClusterIP = corev1.ClusterIPNone })
	s.service("elsewhere", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalName, svc.Spec.Selector = corev1.ServiceTypeExternalName, "example.com", nil
	})
	// Seen after the headless one, so the dataplane knows that one, too.
	vip := hostPort(s.service("loud", func(svc *corev1.Service) {
		svc.Spec.Selector = map[string]string{"app": "quiet"}
	}).Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, "one")

	ip := s.podIP("one")
	for _, client := range s.clients() {
		s.clientAnsweredBy(client, "tcp", hostPort(ip, 8080), []string{"one"})
		// The Service has a port 80, the pod has none: an address that is
		// translated would answer.
		s.failsWith(client, "tcp", hostPort(ip, 80), syscall.ECONNREFUSED)
	}
	if s.portolan() {
		s.listsHeadless("quiet", ip)
		s.listsExternalName("elsewhere", "example.com")
	}
}

func otherProxysService(s *space) {
	const label = "service.kubernetes.io/service-proxy-name"
	s.pod("one", map[string]string{"app": "web"})
	vip := hostPort(s.service("web").Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, "one")

	s.editService("web", func(svc *corev1.Service) { svc.Labels = map[string]string{label: "someone-else"} })
	// The address is somebody's, so the call goes out as it is; in this world
	// the other proxy is not there.
	s.fails("tcp", vip, syscall.ETIMEDOUT)

	s.editService("web", func(svc *corev1.Service) { delete(svc.Labels, label) })
	s.answeredBy("tcp", vip, "one")
}

func headlessSlice(s *space) {
	s.pod("one", nil)
	s.pod("two", nil)
	one, two := s.podIP("one"), s.podIP("two")
	vip := hostPort(s.service("web", withoutSelector).Spec.ClusterIP, 80)
	s.slice("web-a", "web", 8080, []string{one}, func(es *discoveryv1.EndpointSlice) {
		es.Labels[corev1.IsHeadlessService] = ""
	})
	s.slice("web-b", "web", 8080, []string{two})
	s.answeredBy("tcp", vip, "two")

	s.editSlice("web-a", func(es *discoveryv1.EndpointSlice) { delete(es.Labels, corev1.IsHeadlessService) })
	s.answeredBy("tcp", vip, "one", "two")
	s.editSlice("web-b", func(es *discoveryv1.EndpointSlice) { es.Labels[corev1.IsHeadlessService] = "" })
	s.answeredBy("tcp", vip, "one")
}

func unassignedAddressFails(s *space) {
	// The API server leaves the first addresses of a range to Services that
	// name their own.
	s.fails("tcp", "10.96.0.9:80", syscall.ENETUNREACH)
	s.fails("udp", "10.96.0.9:53", syscall.ENETUNREACH)
	s.fails("tcp", "[fd00:10:96::9]:80", syscall.ENETUNREACH)

	cidrs := s.client.NetworkingV1().ServiceCIDRs()
	more, err := cidrs.Create(s.ctx, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "more-"},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.5.0/24"}},
	}, metav1.CreateOptions{})
	s.must(err)
	s.fails("tcp", "10.97.5.9:80", syscall.ENETUNREACH)

	s.pod("one", map[string]string{"app": "web"})
	s.eventually(func() error { // The API server takes up the range after a while.
		_, err := s.client.CoreV1().Services(s.ns).Create(s.ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "web"},
			Spec: corev1.ServiceSpec{
				ClusterIP: "10.97.5.9",
				Selector:  map[string]string{"app": "web"},
				Ports:     []corev1.ServicePort{{Port: 8080}},
			},
		}, metav1.CreateOptions{})
		return err
	})
	s.answeredBy("tcp", "10.97.5.9:8080", "one")
	s.deleteService("web")
	s.fails("tcp", "10.97.5.9:8080", syscall.ENETUNREACH)

	s.must(cidrs.Delete(s.ctx, more.Name, metav1.DeleteOptions{}))
	if !s.portolan() {
		return
	}
	// An address of no range is nobody's business: the call leaves by the
	// default route, where nothing answers.
	s.failsWith(s.pods[0], "tcp", "10.97.5.9:80", syscall.ETIMEDOUT)
}

// podIP waits for a pod and returns its first address.
func (s *space) podIP(name string) string { return s.runningPod(name).Status.PodIP }

// onNode binds a pod to a node.
func onNode(node string, spec corev1.PodSpec) corev1.PodSpec {
	spec.NodeName = node
	return spec
}

// notRefused is an error unless a call failed otherwise than by ECONNREFUSED.
func notRefused(r world.Result) error {
	if r.OK() || r.Problem != "" || r.Errno == syscall.ECONNREFUSED {
		return fmt.Errorf("the call gives %v, want a failure other than a refusal", r)
	}
	return nil
}
