// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/pkg/service"
)

func TestAnnotationsOfAService(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		algorithm, forwarding string
		wantA                 service.Algorithm
		wantF                 service.Forwarding
		problem               string
	}{
		{"maglev", "dsr", service.Maglev, service.DSR, ""},
		{"random", "hybrid", service.Random, service.Hybrid, ""},
		{"random", "snat", service.Random, service.SNAT, ""},
		{"Maglev", "snat", service.DefaultAlgorithm, service.SNAT, `annotation portolan.dev/algorithm: "Maglev" is no algorithm: use random or maglev`},
		{"random", "", service.Random, service.DefaultForwarding, `annotation portolan.dev/forwarding-mode: "" is no forwarding mode: use snat, dsr or hybrid`},
	} {
		obj := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Annotations: map[string]string{
			AnnotationAlgorithm: c.algorithm, AnnotationForwarding: c.forwarding}},
			Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}}}
		s, problems := (&Converter{}).Service(obj)
		if s.Algorithm != c.wantA || s.Forwarding != c.wantF {
			t.Errorf("%q, %q: algorithm %v, forwarding %v", c.algorithm, c.forwarding, s.Algorithm, s.Forwarding)
		}
		said := ""
		for _, p := range problems {
			said += p.Message
		}
		if (c.problem == "") != (said == "") || !strings.HasPrefix(said, c.problem) {
			t.Errorf("%q, %q: problems %q", c.algorithm, c.forwarding, said)
		}
	}
}

func TestTheWeightOfASlice(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint32{"1": 1, "1000": 1000, "7": 7, "0": 0, "1001": 0, "-1": 0, "": 0, "many": 0} {
		obj := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}, Annotations: map[string]string{AnnotationWeight: text}},
			AddressType: discoveryv1.AddressTypeIPv4}
		s, problems := (&Converter{}).EndpointSlice(obj)
		if s.Weight != want {
			t.Errorf("weight %q is %d", text, s.Weight)
		}
		if (len(problems) == 0) != (want > 0) {
			t.Errorf("weight %q: problems %v", text, problems)
		}
	}
}
