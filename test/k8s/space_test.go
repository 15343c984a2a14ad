// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"portolan.dev/portolan/test/world"
)

// grace is how long a deleted pod goes on serving, in seconds: longer than a busy
// machine takes to tell every node.
const grace = 10

// space is one scenario's Kubernetes namespace in the shared cluster.
type space struct {
	*fixture
	t   *testing.T
	ctx context.Context
	ns  string
	// client is the fixture's unless a scenario speaks to another API server.
	client kubernetes.Interface
}

// newSpace makes a namespace that is deleted, with all in it, after the test.
func (f *fixture) newSpace(t *testing.T) *space {
	ctx := t.Context()
	ns, err := f.Client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := f.Client.CoreV1().Namespaces().Delete(context.WithoutCancel(ctx), ns.Name, metav1.DeleteOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	return &space{fixture: f, t: t, ctx: ctx, ns: ns.Name, client: f.Client}
}

// must fails the scenario for an error.
func (s *space) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// service creates a ClusterIP Service with port 80 for pods labelled app=name,
// which listen on 8080, after edit has changed it.
func (s *space) service(name string, edit ...func(*corev1.Service)) *corev1.Service {
	s.t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for _, f := range edit {
		f(svc)
	}
	svc, err := s.client.CoreV1().Services(s.ns).Create(s.ctx, svc, metav1.CreateOptions{})
	s.must(err)
	return svc
}

// editService changes a Service that exists.
func (s *space) editService(name string, edit func(*corev1.Service)) {
	s.t.Helper()
	s.must(retry.RetryOnConflict(retry.DefaultRetry, func() error {
		svc, err := s.client.CoreV1().Services(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		edit(svc)
		_, err = s.client.CoreV1().Services(s.ns).Update(s.ctx, svc, metav1.UpdateOptions{})
		return err
	}))
}

func (s *space) deleteService(name string) {
	s.t.Helper()
	s.must(s.client.CoreV1().Services(s.ns).Delete(s.ctx, name, metav1.DeleteOptions{}))
}

// container serves on ports, TCP unless they say otherwise.
func container(name string, ports ...corev1.ContainerPort) corev1.Container {
	for i := range ports {
		if ports[i].Protocol == "" {
			ports[i].Protocol = corev1.ProtocolTCP
		}
	}
	return corev1.Container{Name: name, Image: "none", Ports: ports}
}

func podSpec(containers ...corev1.Container) corev1.PodSpec {
	seconds := int64(grace)
	return corev1.PodSpec{Containers: containers, TerminationGracePeriodSeconds: &seconds}
}

// webPort is what pods serve unless a scenario wants otherwise.
var webPort = corev1.ContainerPort{Name: "http", ContainerPort: 8080}

// pod creates a pod; without containers it serves webPort.
func (s *space) pod(name string, labels map[string]string, containers ...corev1.Container) {
	s.t.Helper()
	if len(containers) == 0 {
		containers = []corev1.Container{container("web", webPort)}
	}
	s.createPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       podSpec(containers...),
	})
}

func (s *space) createPod(pod *corev1.Pod) {
	s.t.Helper()
	_, err := s.client.CoreV1().Pods(s.ns).Create(s.ctx, pod, metav1.CreateOptions{})
	s.must(err)
}

// runningPod waits until the pod has its addresses and returns it.
func (s *space) runningPod(name string) *corev1.Pod {
	s.t.Helper()
	var pod *corev1.Pod
	s.eventually(func() (err error) {
		pod, err = s.client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err == nil && pod.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("pod %s is %s", name, pod.Status.Phase)
		}
		return err
	})
	return pod
}

// deployment creates a Deployment of pods labelled app=name that replaces pods
// without ever having fewer than it should, and waits for it.
func (s *space) deployment(name string, replicas int32, edit ...func(*appsv1.Deployment)) {
	s.t.Helper()
	labels := map[string]string{"app": name}
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &one},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       podSpec(container("web", webPort)),
			},
		},
	}
	for _, f := range edit {
		f(d)
	}
	_, err := s.client.AppsV1().Deployments(s.ns).Create(s.ctx, d, metav1.CreateOptions{})
	s.must(err)
	s.rolledOut(name)
}

// deploymentOf is deployment with pods of another container.
func (s *space) deploymentOf(name string, replicas int32, c corev1.Container) {
	s.t.Helper()
	s.deployment(name, replicas, func(d *appsv1.Deployment) { d.Spec.Template.Spec = podSpec(c) })
}

// editDeployment changes a Deployment and waits until it has rolled out.
func (s *space) editDeployment(name string, edit func(*appsv1.Deployment)) {
	s.t.Helper()
	s.must(retry.RetryOnConflict(retry.DefaultRetry, func() error {
		d, err := s.client.AppsV1().Deployments(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		edit(d)
		_, err = s.client.AppsV1().Deployments(s.ns).Update(s.ctx, d, metav1.UpdateOptions{})
		return err
	}))
	s.rolledOut(name)
}

func (s *space) scale(name string, replicas int32) {
	s.t.Helper()
	s.editDeployment(name, func(d *appsv1.Deployment) { d.Spec.Replicas = &replicas })
}

// rolledOut waits until all pods of a Deployment are of its present template,
// available, and no others are left.
func (s *space) rolledOut(name string) {
	s.t.Helper()
	s.eventuallyIn(rolloutLimit, func() error {
		d, err := s.client.AppsV1().Deployments(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want, st := *d.Spec.Replicas, d.Status
		if st.ObservedGeneration < d.Generation || st.UpdatedReplicas != want ||
			st.AvailableReplicas != want || st.Replicas != want {
			return fmt.Errorf("deployment %s: want %d, have %d updated, %d available, %d in all",
				name, want, st.UpdatedReplicas, st.AvailableReplicas, st.Replicas)
		}
		if pods := s.podNames("app=" + name); len(pods) != int(want) {
			return fmt.Errorf("deployment %s: pods %v, want %d", name, pods, want)
		}
		return nil
	})
}

// podNames lists the pods that a label selector matches, terminating ones too.
func (s *space) podNames(selector string) []string {
	s.t.Helper()
	list, err := s.client.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: selector})
	s.must(err)
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	slices.Sort(names)
	return names
}

// slice creates an EndpointSlice by hand, with one port for the service port
// web; a controller that did not make it leaves it alone.
func (s *space) slice(name, service string, port int32, addrs []string, edit ...func(*discoveryv1.EndpointSlice)) {
	s.t.Helper()
	portName, proto := "web", corev1.ProtocolTCP
	es := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: service,
			discoveryv1.LabelManagedBy:   "by-hand",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
	}
	for _, a := range addrs {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	for _, f := range edit {
		f(es)
	}
	_, err := s.client.DiscoveryV1().EndpointSlices(s.ns).Create(s.ctx, es, metav1.CreateOptions{})
	s.must(err)
}

// editSlice changes an EndpointSlice that exists.
func (s *space) editSlice(name string, edit func(*discoveryv1.EndpointSlice)) {
	s.t.Helper()
	s.must(retry.RetryOnConflict(retry.DefaultRetry, func() error {
		es, err := s.client.DiscoveryV1().EndpointSlices(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		edit(es)
		_, err = s.client.DiscoveryV1().EndpointSlices(s.ns).Update(s.ctx, es, metav1.UpdateOptions{})
		return err
	}))
}

// portolan says whether the dataplane is Portolan's; where kube-proxy behaves
// otherwise, an expectation is for Portolan alone.
func (s *space) portolan() bool { return s.dataplane.Name == "portolan" }

// clients are a pod and a host process on every node.
func (s *space) clients() []*world.Probe { return slices.Concat(s.pods, s.hosts) }

// tail is the end of a text, for logs.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
