// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"portolan.dev/portolan/test/k8s/cluster"
	"portolan.dev/portolan/test/k8s/controlplane"
	"portolan.dev/portolan/test/world"
)

// readyPort is where CoreDNS says that its kubernetes plugin has synced.
const readyPort = 8181

// coreDNSAnswers runs CoreDNS as a cluster does: in a pod, behind a ClusterIP
// on UDP and TCP 53, talking to the API server through the Service kubernetes.
// The client knows that ClusterIP and nothing else.
func coreDNSAnswers(s *space) {
	dnsIP := s.coreDNS()
	s.deployment("web", 2)
	web := s.service("web")
	s.service("quiet", func(svc *corev1.Service) {
		svc.Spec.Selector, svc.Spec.ClusterIP = web.Spec.Selector, corev1.ClusterIPNone
	})
	s.service("alias", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.Selector = corev1.ServiceTypeExternalName, nil
		svc.Spec.ExternalName = "web." + s.ns + ".svc.cluster.local"
	})
	var podIPs []string
	for _, name := range s.podNames("app=web") {
		podIPs = append(podIPs, "A "+s.podIP(name))
	}
	slices.Sort(podIPs)

	vip := "A " + web.Spec.ClusterIP
	want := map[string][]string{
		"web":   {vip},
		"quiet": podIPs,
		"alias": {vip, "CNAME web." + s.ns + ".svc.cluster.local."},
	}
	for _, n := range s.Nodes {
		client := must(n.AddPod(s.ns + ".resolver-" + n.Name()))(s.t)
		s.t.Cleanup(func() {
			if err := client.Remove(); err != nil {
				s.t.Error(err)
			}
		})
		for name, records := range want {
			for _, how := range []transport{udpConnected, udpUnconnected, tcp} {
				s.resolves(client, query{
					Server: hostPort(dnsIP, 53), Transport: how,
					Name: name + "." + s.ns + ".svc.cluster.local", Type: dns.TypeA,
				}, records)
			}
		}
		s.libcResolves(client, dnsIP, "alias", web.Spec.ClusterIP)
	}
}

// coreDNS starts CoreDNS behind a Service and returns the ClusterIP.
func (s *space) coreDNS() string {
	s.t.Helper()
	dir := s.t.TempDir()
	api, err := s.client.CoreV1().Services("default").Get(s.ctx, "kubernetes", metav1.GetOptions{})
	s.must(err)
	kubeconfig, corefile := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "Corefile")
	s.must(os.WriteFile(kubeconfig, []byte(controlplane.Kubeconfig(hostPort(api.Spec.ClusterIP, 443))), 0o600))
	s.must(os.WriteFile(corefile, fmt.Appendf(nil, `.:53 {
	errors
	ready :%d
	kubernetes cluster.local {
		kubeconfig %s
	}
}
`, readyPort, kubeconfig), 0o600))
	c := container("coredns",
		corev1.ContainerPort{ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		corev1.ContainerPort{ContainerPort: 53})
	c.Command = []string{must(cluster.BuildControlPlane())(s.t), "coredns", "-conf", corefile}
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
		HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(readyPort)},
	}}
	s.pod("coredns", map[string]string{"app": "dns"}, c)
	svc := s.service("dns", func(svc *corev1.Service) {
		svc.Spec.Ports = []corev1.ServicePort{
			{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
			{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
		}
	})
	return svc.Spec.ClusterIP
}

// resolves waits until a query from the pod gives exactly records.
func (s *space) resolves(pod *world.Pod, q query, records []string) {
	s.t.Helper()
	s.eventually(func() error {
		got, err := resolve(pod, q)
		if err == nil && !slices.Equal(got, records) {
			err = fmt.Errorf("%s over %s gives %v, want %v", q.Name, q.Transport, got, records)
		}
		return err
	})
}

// libcResolves asks the C library's resolver, by a short name and with a
// resolv.conf such as a kubelet writes, and wants one address.
func (s *space) libcResolves(pod *world.Pod, server, name, addr string) {
	s.t.Helper()
	conf := filepath.Join(s.t.TempDir(), "resolv.conf")
	s.must(os.WriteFile(conf, fmt.Appendf(nil,
		"nameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", server, s.ns), 0o644))
	s.eventually(func() error {
		proc, err := pod.Start("unshare", "--mount", "sh", "-c",
			`mount --bind "$0" /etc/resolv.conf && exec getent -s dns ahostsv4 "$1"`, conf, name)
		if err != nil {
			return err
		}
		if err := proc.Wait(15 * time.Second); err != nil {
			return fmt.Errorf("resolve %s: %w: %s", name, err, proc.Output())
		}
		if !strings.HasPrefix(proc.Output(), addr+" ") {
			return fmt.Errorf("resolve %s: got %q, want %s", name, proc.Output(), addr)
		}
		return nil
	})
}
