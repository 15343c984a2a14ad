// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/test/world"
)

func rolloutFailsNoRequest(s *space) {
	s.deployment("web", 3)
	vip := hostPort(s.service("web").Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, s.podNames("app=web")...)

	l := s.startLoad("tcp", vip)
	for _, image := range []string{"v2", "v3"} {
		before := s.podNames("app=web")
		s.editDeployment("web", func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0].Image = image
		})
		after := s.podNames("app=web")
		if fmt.Sprint(before) == fmt.Sprint(after) {
			s.t.Fatalf("image %s did not replace the pods %v", image, before)
		}
		s.answeredBy("tcp", vip, after...)
		l.goesOn(10)
	}
	l.stopWithoutFailure()
}

func scaledToZeroRefuses(s *space) {
	s.deployment("web", 2)
	vip := hostPort(s.service("web").Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, s.podNames("app=web")...)

	s.scale("web", 0)
	s.refused("tcp", vip)
	for _, client := range s.clients() { // It stays so.
		report, err := client.DialMany("tcp", vip, 100, world.Timeout(impatient))
		s.must(err)
		for _, f := range report.Failures {
			if f.Errno != refusedErrno {
				s.t.Fatalf("a call fails with %s, want %v", f, refusedErrno)
			}
		}
		if report.Failed != report.Total {
			s.t.Fatalf("%v answered of %d calls, want none", report.Backends, report.Total)
		}
	}

	s.scale("web", 2)
	s.answeredBy("tcp", vip, s.podNames("app=web")...)
}

func lastPodReceivesWhileTerminating(s *space) {
	// Long enough for what is checked below, which ends the pod itself.
	const longGrace = int64(600)
	s.pod("last", map[string]string{"app": "web"})
	s.runningPod("last")
	vip := hostPort(s.service("web").Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, "last")

	l := s.startLoad("tcp", vip)
	seconds := longGrace
	pods := s.client.CoreV1().Pods(s.ns)
	s.must(pods.Delete(s.ctx, "last", metav1.DeleteOptions{GracePeriodSeconds: &seconds}))
	s.sliceSays("web", func(c discoveryv1.EndpointConditions) bool {
		return !*c.Ready && *c.Serving && *c.Terminating
	})
	l.goesOn(50)
	l.stopWithoutFailure()
	s.answeredBy("tcp", vip, "last")

	// A ready pod takes over from one that terminates.
	s.pod("next", map[string]string{"app": "web"})
	s.answeredBy("tcp", vip, "next")

	for _, name := range []string{"last", "next"} {
		seconds = 0
		s.must(pods.Delete(s.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &seconds}))
	}
	s.refused("tcp", vip)
}

// sliceSays waits until a controller's slice has endpoints for a Service and
// all of their conditions pass.
func (s *space) sliceSays(service string, pass func(discoveryv1.EndpointConditions) bool) {
	s.t.Helper()
	s.eventually(func() error {
		list, err := s.client.DiscoveryV1().EndpointSlices(s.ns).List(s.ctx,
			metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
		if err != nil {
			return err
		}
		seen := 0
		for i := range list.Items {
			for _, ep := range list.Items[i].Endpoints {
				seen++
				if !pass(ep.Conditions) {
					return fmt.Errorf("endpoint %v has conditions %v", ep.Addresses, ep.Conditions)
				}
			}
		}
		if seen == 0 {
			return errors.New("no endpoints")
		}
		return nil
	})
}
