// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"fmt"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"portolan.dev/portolan/test/k8s/cluster"
)

// handMade is a Service whose one endpoint a scenario chooses by hand, so that
// a change of it needs no controller.
type handMade struct {
	*space
	name string
	vip  string
}

func (s *space) handMade(name, pod string) *handMade {
	s.t.Helper()
	vip := hostPort(s.service(name, withoutSelector).Spec.ClusterIP, 80)
	s.slice(name, name, 8080, []string{s.podIP(pod)})
	s.answeredBy("tcp", vip, pod)
	return &handMade{s, name, vip}
}

func (h *handMade) moveTo(pod string) {
	h.t.Helper()
	ip := h.podIP(pod)
	h.editSlice(h.name, func(es *discoveryv1.EndpointSlice) { es.Endpoints[0].Addresses = []string{ip} })
}

func apiServerRestarts(s *space) {
	s.pod("one", nil)
	s.pod("two", nil)
	h := s.handMade("web", "one")
	l := s.startLoad("tcp", h.vip)

	s.Plane.KillAPIServer()
	l.goesOn(100)
	s.answeredBy("tcp", h.vip, "one")

	s.must(s.Plane.StartAPIServer(s.ctx))
	h.moveTo("two")
	s.answeredBy("tcp", h.vip, "two")
	late := s.handMade("late", "one")
	l.goesOn(10)
	l.stopWithoutFailure()

	// The controllers have come back, too: a Service with a selector works.
	s.deployment("front", 2)
	vip := hostPort(s.service("front").Spec.ClusterIP, 80)
	s.answeredBy("tcp", vip, s.podNames("app=front")...)
	s.answeredBy("tcp", late.vip, "one")
}

// Unlike a server that is gone, one that cannot be reached closes no connection,
// and after a minute the agents have given up the old one.
func nodesAreCutOff(s *space) {
	if !s.portolan() {
		s.t.Skip("kube-proxy looks for the API server again after half a minute")
	}
	s.pod("one", nil)
	s.pod("two", nil)
	h, kept := s.handMade("web", "one"), s.handMade("kept", "one")
	l := s.startLoad("tcp", h.vip)

	s.must(s.CutOff(true))
	s.t.Cleanup(func() { // also when this fails: others need the way
		if err := s.CutOff(false); err != nil {
			s.t.Error(err)
		}
	})
	h.moveTo("two")
	l.goesOnFor(time.Minute)
	s.answeredBy("tcp", h.vip, "one")

	s.must(s.CutOff(false))
	s.answeredBy("tcp", h.vip, "two")
	s.answeredBy("tcp", kept.vip, "one")
	s.handMade("late", "one")
	l.stopWithoutFailure()
}

func resourceVersionExpires(s *space) {
	s.pod("one", nil)
	s.pod("two", nil)
	moved, removed, kept := s.handMade("moved", "one"), s.handMade("removed", "one"), s.handMade("kept", "two")
	list, err := s.client.DiscoveryV1().EndpointSlices(s.ns).List(s.ctx, metav1.ListOptions{})
	s.must(err)
	one, two := s.podIP("one"), s.podIP("two")
	l := s.startLoad("tcp", kept.vip)

	// Behind the dataplane's back: it does not find the API server here.
	s.Plane.KillAPIServer()
	s.must(s.Plane.StartAPIServerOn(s.ctx, cluster.OtherAPIServerPort))
	other, err := s.Plane.Client()
	s.must(err)
	hidden := *s
	hidden.client = other
	hidden.editSlice("moved", func(es *discoveryv1.EndpointSlice) { es.Endpoints[0].Addresses = []string{two} })
	hidden.deleteService("removed")
	late := hostPort(hidden.service("late", withoutSelector).Spec.ClusterIP, 80)
	hidden.slice("late", "late", 8080, []string{one})
	s.answeredBy("tcp", moved.vip, "one")
	s.answeredBy("tcp", removed.vip, "one")

	s.Plane.KillAPIServer()
	s.must(s.Plane.StartAPIServer(s.ctx))
	s.expired(list.ResourceVersion)
	s.answeredBy("tcp", moved.vip, "two")
	s.fails("tcp", removed.vip, syscall.ENETUNREACH)
	s.answeredBy("tcp", late, "one")
	l.stopWithoutFailure()
}

// expired waits until the API server refuses to go on from a resource version,
// which makes sure that the scenario shows what it says.
func (s *space) expired(version string) {
	s.t.Helper()
	s.eventually(func() error {
		w, err := s.client.DiscoveryV1().EndpointSlices(s.ns).Watch(s.ctx, metav1.ListOptions{ResourceVersion: version})
		if apierrors.IsResourceExpired(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer w.Stop()
		event, ok := <-w.ResultChan()
		if ok && event.Type == watch.Error && apierrors.IsResourceExpired(apierrors.FromObject(event.Object)) {
			return nil
		}
		return fmt.Errorf("a watch from version %s gives %v, want it expired", version, event)
	})
}

func agentRestarts(s *space) {
	s.pod("one", nil)
	s.pod("two", nil)
	h := s.handMade("web", "one")
	gone := s.handMade("gone", "one")
	l := s.startLoad("tcp", h.vip)

	for _, n := range s.Nodes {
		n.KillDataplane()
	}
	h.moveTo("two")
	s.deleteService("gone")
	l.goesOn(100)
	// Nobody is there to follow: the old state serves on.
	s.answeredBy("tcp", h.vip, "one")
	s.answeredBy("tcp", gone.vip, "one")

	for _, n := range s.Nodes {
		s.must(n.StartDataplane(s.dataplane))
	}
	s.answeredBy("tcp", h.vip, "two")
	s.fails("tcp", gone.vip, syscall.ENETUNREACH)
	s.handMade("late", "one")
	l.stopWithoutFailure()
}

func unsyncedAgentRemovesNothing(s *space) {
	s.pod("one", nil)
	s.pod("two", nil)
	h := s.handMade("web", "one")
	l := s.startLoad("tcp", h.vip)

	for _, n := range s.Nodes {
		n.KillDataplane()
	}
	s.Plane.KillAPIServer()
	for _, n := range s.Nodes {
		s.must(n.StartDataplane(s.dataplane))
	}
	s.must(s.AwaitNodes(s.ctx))
	l.goesOn(100)
	s.answeredBy("tcp", h.vip, "one")

	s.must(s.Plane.StartAPIServer(s.ctx))
	h.moveTo("two")
	s.answeredBy("tcp", h.vip, "two")
	l.stopWithoutFailure()
}
