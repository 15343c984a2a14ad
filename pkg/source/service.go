// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"portolan.dev/portolan/pkg/service"
)

// labelProxyName decides who serves a Service. It counts on Services only.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// Service converts a Service. The result always stands for the object; what of
// it is invalid is left out and reported. Of a Service that another proxy
// serves nothing is reported: what is wrong with it is for that proxy to say.
func (c *Converter) Service(obj *corev1.Service) (*service.Service, []service.Problem) {
	f := &faults{kind: "Service", namespace: obj.Namespace, name: obj.Name}
	s := &service.Service{
		Name:    service.Name{Namespace: interned(obj.Namespace), Name: obj.Name},
		Created: obj.CreationTimestamp.Time, ExternalName: obj.Spec.ExternalName,
		Selector:  selector(obj.Spec.Selector),
		ProxyName: c.otherProxy(obj),
	}
	s.Type = f.serviceType(obj.Spec.Type)
	f.clusterIPs(s, &obj.Spec)
	f.externalIPs(s, obj.Spec.ExternalIPs, c.ExternalIPs)
	f.ingress(s, obj.Status.LoadBalancer.Ingress)
	f.sourceRanges(s, obj.Spec.LoadBalancerSourceRanges)
	f.ports(s, obj.Spec.Ports)
	f.policies(s, &obj.Spec)
	f.affinity(s, &obj.Spec)
	f.outside(s, obj.Annotations)
	if s.ProxyName != "" {
		return s, nil
	}
	return s, f.all()
}

// otherProxy names the proxy that serves a Service which is not ours.
func (c *Converter) otherProxy(obj *corev1.Service) string {
	label, labelled := obj.Labels[labelProxyName]
	switch {
	case c.ProxyName == "" && !labelled, c.ProxyName != "" && label == c.ProxyName:
		return ""
	case label != "":
		return label
	case labelled:
		return "unnamed"
	}
	return "default"
}

// selector writes a selector as kubectl does.
func selector(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func (f *faults) serviceType(t corev1.ServiceType) service.Type {
	switch t {
	case corev1.ServiceTypeClusterIP, "":
		return service.ClusterIP
	case corev1.ServiceTypeNodePort:
		return service.NodePort
	case corev1.ServiceTypeLoadBalancer:
		return service.LoadBalancer
	case corev1.ServiceTypeExternalName:
		return service.ExternalName
	}
	f.add(service.ReasonInvalidField, "spec.type %q is none: it is served as ClusterIP; use ClusterIP, NodePort, LoadBalancer or ExternalName", t)
	return service.ClusterIP
}

func (f *faults) clusterIPs(s *service.Service, spec *corev1.ServiceSpec) {
	texts, at := spec.ClusterIPs, of("spec.clusterIPs", 0)
	if len(texts) == 0 && spec.ClusterIP != "" {
		texts, at = []string{spec.ClusterIP}, plain("spec.clusterIP")
	} else if len(texts) > 0 && spec.ClusterIP != "" && spec.ClusterIP != texts[0] {
		f.add(service.ReasonInvalidField, "spec.clusterIP %q is not the first of spec.clusterIPs %q, which are used; make them agree", spec.ClusterIP, texts)
	}
	for i, text := range texts {
		if at.index >= 0 {
			at.index = i
		}
		if text == corev1.ClusterIPNone {
			s.Headless = true
		} else if a, ok := f.clusterIP(at, text, spec.IPFamilies); ok {
			s.ClusterIPs = append(s.ClusterIPs, a)
		}
	}
	if len(texts) == 0 && s.Type != service.ExternalName {
		// Only files can say so: the API server allocates an address.
		f.add(service.ReasonInvalidField, "spec.clusterIP is missing and nothing of the Service is served; write an address, or None for a headless one")
	}
}

func (f *faults) clusterIP(at field, text string, families []corev1.IPFamily) (netip.Addr, bool) {
	a, ok := f.addr(at, text)
	switch {
	case !ok:
	case len(families) > 0 && !slices.Contains(families, corev1.IPFamily(service.FamilyOf(a).String())):
		f.add(service.ReasonWrongFamily, "%s %s is not of spec.ipFamilies %v and is not served; make them agree", at, a, families)
		ok = false
	case special(a):
		f.add(service.ReasonInvalidAddress, "%s %s cannot be a Service's address and is not served: %s", at, a, specialKinds)
		ok = false
	}
	return a, ok
}

// foreign reports an address of a family that none of the Service's cluster
// IPs has: it is served in its families only.
func (f *faults) foreign(s *service.Service, at field, a netip.Addr) bool {
	if len(s.ClusterIPs) == 0 {
		return false // reported already, or headless
	}
	for _, own := range s.ClusterIPs {
		if service.FamilyOf(own) == service.FamilyOf(a) {
			return false
		}
	}
	f.add(service.ReasonWrongFamily, "%s %s is not served: the Service has no %s address in spec.clusterIPs; give it one, or remove this", at, a, service.FamilyOf(a))
	return true
}

func (f *faults) externalIPs(s *service.Service, texts []string, allowed []netip.Prefix) {
	for i, text := range texts {
		at := of("spec.externalIPs", i)
		a, ok := f.addr(at, text)
		if !ok || f.foreign(s, at, a) {
			continue
		}
		if special(a) {
			f.add(service.ReasonInvalidAddress, "%s %s cannot be an external IP and is not served: %s", at, a, specialKinds)
			continue
		}
		if allowed != nil && !slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(a) }) {
			f.add(service.ReasonNotAllowed, "%s %s is not within --external-ip-cidrs and is not served: widen the flag, or remove it", at, a)
			continue
		}
		s.ExternalIPs = append(s.ExternalIPs, a)
	}
}

func (f *faults) ingress(s *service.Service, list []corev1.LoadBalancerIngress) {
	for i := range list {
		in := &list[i]
		at := of("status.loadBalancer.ingress", i)
		if in.IP == "" {
			if in.Hostname != "" {
				s.LoadBalancerHostnames = append(s.LoadBalancerHostnames, in.Hostname)
			}
			continue
		}
		a, ok := f.addr(at.sub(".ip"), in.IP)
		switch {
		case !ok:
		case in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy:
			s.ProxyIPs = append(s.ProxyIPs, a)
		case in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP:
			f.add(service.ReasonInvalidField, "%s %q is none: %s is left to the load balancer; use VIP or Proxy", at.sub(".ipMode"), *in.IPMode, a)
			s.ProxyIPs = append(s.ProxyIPs, a)
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
			// Link-local ones exist: load balancers on the node itself.
			f.add(service.ReasonInvalidAddress, "%s %s cannot be a load balancer's and is not served: it is unspecified, loopback or multicast", at.sub(".ip"), a)
		case !f.foreign(s, at.sub(".ip"), a):
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, a)
		}
	}
}

// sourceRanges reads the guard of the load balancer addresses. If part of it
// cannot be read, a family for which nothing is left must not stand open: its
// load balancer addresses are not served.
func (f *faults) sourceRanges(s *service.Service, texts []string) {
	unread := false
	for i, text := range texts {
		if p, ok := f.prefix(of("spec.loadBalancerSourceRanges", i), text); ok {
			s.SourceRanges = append(s.SourceRanges, p)
		} else {
			unread = true
		}
	}
	if !unread || s.Type != service.LoadBalancer {
		return
	}
	s.LoadBalancerIPs = slices.DeleteFunc(s.LoadBalancerIPs, func(a netip.Addr) bool {
		guarded := slices.ContainsFunc(s.SourceRanges, func(p netip.Prefix) bool {
			return p.Addr().Is4() == a.Is4()
		})
		if !guarded {
			f.add(service.ReasonInvalidRange, "load balancer address %s is not served: no %s range of spec.loadBalancerSourceRanges can be read, and it must not stand open; mend them", a, service.FamilyOf(a))
		}
		return !guarded
	})
}

func (f *faults) ports(s *service.Service, list []corev1.ServicePort) {
	if len(list) == 0 && !s.Headless && s.Type != service.ExternalName {
		f.add(service.ReasonInvalidPort, "spec.ports is empty and nothing is served; name a port")
	}
	s.Ports = make([]service.Port, 0, len(list))
	taken := make([]int, 0, len(list)) // where in list the ports of s stand
	for i := range list {
		port, ok := f.servicePort(of("spec.ports", i), &list[i], s.Type)
		if !ok {
			continue
		}
		twin := slices.IndexFunc(s.Ports, func(o service.Port) bool {
			return o.Protocol == port.Protocol && (o.Port == port.Port || o.Name == port.Name)
		})
		if twin >= 0 {
			f.add(service.ReasonInvalidPort, "%s has the name or the number of %s and is not served; give each its own", of("spec.ports", i), of("spec.ports", taken[twin]))
			continue
		}
		s.Ports, taken = append(s.Ports, port), append(taken, i)
	}
}

func (f *faults) servicePort(at field, p *corev1.ServicePort, t service.Type) (service.Port, bool) {
	protocol, ok := f.protocol(at.sub(".protocol"), p.Protocol)
	if !ok {
		return service.Port{}, false
	}
	number, ok := f.port(at.sub(".port"), p.Port)
	if !ok {
		return service.Port{}, false
	}
	port := service.Port{Name: interned(p.Name), Protocol: protocol, Port: number, TargetPort: interned(p.TargetPort.String())}
	switch {
	case p.NodePort == 0:
	case t == service.NodePort || t == service.LoadBalancer:
		port.NodePort, _ = f.port(at.sub(".nodePort"), p.NodePort)
	case t == service.ClusterIP:
		f.add(service.ReasonInvalidField, "%s %d is not served: the Service is of type ClusterIP; use type NodePort or LoadBalancer", at.sub(".nodePort"), p.NodePort)
	}
	return port, true
}

func (f *faults) policies(s *service.Service, spec *corev1.ServiceSpec) {
	internal := corev1.ServiceInternalTrafficPolicyCluster
	if spec.InternalTrafficPolicy != nil {
		internal = *spec.InternalTrafficPolicy
	}
	s.InternalLocal = f.local("spec.internalTrafficPolicy", string(internal))
	s.ExternalLocal = f.local("spec.externalTrafficPolicy", string(spec.ExternalTrafficPolicy))
	if spec.HealthCheckNodePort != 0 {
		s.HealthCheckNodePort, _ = f.port(plain("spec.healthCheckNodePort"), spec.HealthCheckNodePort)
	}
	if s.Headless && (s.Type == service.NodePort || s.Type == service.LoadBalancer) {
		f.add(service.ReasonInvalidField, "spec.type %s of a headless Service means nothing and no address of it is served; give it a cluster IP", s.Type)
	}
}

func (f *faults) local(name, policy string) bool {
	switch policy {
	case "Local":
		return true
	case "Cluster", "":
	default:
		f.add(service.ReasonInvalidField, "%s %q is none: Cluster is used; use Cluster or Local", name, policy)
	}
	return false
}

func (f *faults) affinity(s *service.Service, spec *corev1.ServiceSpec) {
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone, "":
		return
	case corev1.ServiceAffinityClientIP:
	default:
		f.add(service.ReasonInvalidField, "spec.sessionAffinity %q is none: there is no affinity; use None or ClientIP", spec.SessionAffinity)
		return
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > 86400 {
		f.add(service.ReasonInvalidField, "spec.sessionAffinityConfig.clientIP.timeoutSeconds %d is out of range: %d is used; use 1 to 86400", seconds, corev1.DefaultClientIPServiceAffinitySeconds)
		seconds = corev1.DefaultClientIPServiceAffinitySeconds
	}
	s.Affinity = time.Duration(seconds) * time.Second
}
