// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"portolan.dev/portolan/test/k8s/cluster"
)

const (
	namespace   = metav1.NamespaceDefault
	backendPort = 8080
	servicePort = 80
	writers     = 16 // Objects are created by so many at once.
	// probed Services stand for all: spread evenly over them in the order of
	// creation and of name, the first and the last among them.
	probed = 100
	// flipName is the Service with one endpoint whose endpoint changes.
	flipName = "flip"
)

// bench is a loaded cluster.
type bench struct {
	config  config
	cluster *cluster.Cluster
	client  kubernetes.Interface

	backends []string // addresses of pods that answer, named like their address
	vips     []string // "IP:PORT" of the probed Services
	flipVIP  string
}

// load starts the backends and creates the Services. Every endpoint exists, so
// every Service answers.
func (b *bench) load(ctx context.Context) error {
	for i := range max(b.config.endpoints, 2) {
		pod, err := b.cluster.Nodes[1].AddPod(fmt.Sprintf("backend-%d", i))
		if err != nil {
			return err
		}
		ip := pod.IPv4().String()
		if _, err := pod.Serve(ip, fmt.Sprintf("tcp:%d", backendPort)); err != nil {
			return err
		}
		b.backends = append(b.backends, ip)
	}
	began := time.Now()
	vips, err := b.createServices(ctx)
	if err != nil {
		return err
	}
	for i := range min(probed, len(vips)) {
		at := 0
		if n := min(probed, len(vips)); n > 1 {
			at = i * (len(vips) - 1) / (n - 1)
		}
		b.vips = append(b.vips, vips[at])
	}
	if b.flipVIP, err = b.createService(ctx, flipName, b.backends[:1]); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "loaded %d Services of %d endpoints in %v\n",
		b.config.services, b.config.endpoints, time.Since(began).Round(time.Second))
	return nil
}

// createServices returns the VIPs in the order of the Services' names.
func (b *bench) createServices(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	vips := make([]string, b.config.services)
	next := make(chan int)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range next {
				vip, err := b.createService(ctx, fmt.Sprintf("svc-%06d", i), b.backends[:b.config.endpoints])
				if err != nil {
					cancel(err)
					return
				}
				vips[i] = vip
			}
		})
	}
	for i := range vips {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return vips, context.Cause(ctx)
}

// createService creates a Service without a selector and its slice and returns
// the Service's "IP:PORT".
func (b *bench) createService(ctx context.Context, name string, addrs []string) (string, error) {
	svc, err := b.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: servicePort}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create service %s: %w", name, err)
	}
	port, portName, proto := int32(backendPort), "web", corev1.ProtocolTCP
	es := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			discoveryv1.LabelServiceName: name,
			discoveryv1.LabelManagedBy:   "bench",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
	}
	for _, a := range addrs {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	if _, err := b.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, es, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("create endpoint slice %s: %w", name, err)
	}
	return net.JoinHostPort(svc.Spec.ClusterIP, fmt.Sprint(servicePort)), nil
}
