// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"portolan.dev/portolan/pkg/service"
)

// Labels that decide who serves what, as kube-proxy 1.36 reads them: the first
// on Services only, the second on slices only.
const (
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless  = corev1.IsHeadlessService
)

// Converter turns API objects into the model. It is immutable and may be used
// by several goroutines.
type Converter struct {
	// ProxyName is --service-proxy-name: which Services are ours.
	ProxyName string
}

// faults gathers what is wrong with one object.
type faults struct {
	object string
	list   []service.Problem
}

func (f *faults) add(reason, format string, args ...any) {
	f.list = append(f.list, service.Problem{Object: f.object, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// addr reads an address; what is none is left out.
func (f *faults) addr(field, text string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return a.Unmap(), true
	}
	if a, ok := withoutLeadingZeros(text); ok {
		f.add(service.ReasonLeadingZeros, "%s %q has leading zeros: it is read as %s; write it so", field, text, a)
		return a, true
	}
	f.add(service.ReasonInvalidAddress, "%s %q is not an IP address and is not served; write one such as 10.96.0.10 or fd00::10", field, text)
	return netip.Addr{}, false
}

// withoutLeadingZeros reads an IPv4 address as old API servers let it in:
// decimal, whatever zeros stand in front.
func withoutLeadingZeros(text string) (netip.Addr, bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		parts[i] = strconv.FormatUint(n, 10)
	}
	a, err := netip.ParseAddr(strings.Join(parts, "."))
	return a, err == nil
}

func (f *faults) port(field string, n int32) (uint16, bool) {
	if n < 1 || n > math.MaxUint16 {
		f.add(service.ReasonInvalidPort, "%s %d is not a port and is not served; use 1 to 65535", field, n)
		return 0, false
	}
	return uint16(n), true
}

func (f *faults) protocol(field string, p corev1.Protocol) (service.Protocol, bool) {
	protocol, err := service.ParseProtocol(string(p))
	if err != nil {
		f.add(service.ReasonUnknownProtocol, "%s is not served: %v", field, err)
		return 0, false
	}
	return protocol, true
}

func (f *faults) prefix(field, text string) (netip.Prefix, bool) {
	text = strings.TrimSpace(text)
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), true
	}
	if host, bits, ok := strings.Cut(text, "/"); ok {
		a, good := withoutLeadingZeros(host)
		n, err := strconv.Atoi(bits)
		if good && err == nil && n >= 0 && n <= 32 {
			f.add(service.ReasonLeadingZeros, "%s %q has leading zeros: it is read as %s/%d; write it so", field, text, a, n)
			return netip.PrefixFrom(a, n).Masked(), true
		}
	}
	f.add(service.ReasonInvalidRange, "%s %q is not a CIDR and is left out; write one such as 192.0.2.0/24", field, text)
	return netip.Prefix{}, false
}

// Service converts a Service. The result always stands for the object; what of
// it is invalid is left out and reported.
func (c *Converter) Service(obj *corev1.Service) (*service.Service, []service.Problem) {
	name := service.Name{Namespace: obj.Namespace, Name: obj.Name}
	f := &faults{object: "Service " + name.String()}
	s := &service.Service{
		Name: name, Created: obj.CreationTimestamp.Time, ExternalName: obj.Spec.ExternalName,
		InternalLocal:       obj.Spec.InternalTrafficPolicy != nil && *obj.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal:       obj.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		HealthCheckNodePort: uint16(max(0, min(obj.Spec.HealthCheckNodePort, math.MaxUint16))),
		Selector:            selector(obj.Spec.Selector),
		ProxyName:           c.otherProxy(obj),
	}
	s.Type = f.serviceType(obj.Spec.Type)
	f.clusterIPs(s, &obj.Spec)
	for _, text := range obj.Spec.ExternalIPs {
		if a, ok := f.addr("spec.externalIPs", text); ok {
			s.ExternalIPs = append(s.ExternalIPs, a)
		}
	}
	f.ingress(s, obj.Status.LoadBalancer.Ingress)
	for _, text := range obj.Spec.LoadBalancerSourceRanges {
		if p, ok := f.prefix("spec.loadBalancerSourceRanges", text); ok {
			s.SourceRanges = append(s.SourceRanges, p)
		}
	}
	if n := len(obj.Spec.LoadBalancerSourceRanges); n > 0 && len(s.SourceRanges) == 0 && s.Type == service.LoadBalancer {
		// A guard of which nothing can be read must not stand open.
		f.add(service.ReasonInvalidRange, "none of spec.loadBalancerSourceRanges can be read: the load balancer addresses are not served until one can")
		s.LoadBalancerIPs = nil
	}
	f.ports(s, obj.Spec.Ports)
	f.affinity(s, &obj.Spec)
	return s, f.list
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
	texts := spec.ClusterIPs
	if len(texts) == 0 && spec.ClusterIP != "" {
		texts = []string{spec.ClusterIP}
	}
	for _, text := range texts {
		if text == corev1.ClusterIPNone {
			s.Headless = true
			continue
		}
		a, ok := f.addr("spec.clusterIPs", text)
		if !ok {
			continue
		}
		if len(spec.IPFamilies) > 0 && !slices.Contains(spec.IPFamilies, corev1.IPFamily(service.FamilyOf(a).String())) {
			f.add(service.ReasonWrongFamily, "spec.clusterIPs %s is not of spec.ipFamilies %v and is not served; make them agree", a, spec.IPFamilies)
			continue
		}
		if !a.IsGlobalUnicast() {
			f.add(service.ReasonInvalidAddress, "spec.clusterIPs %s cannot be a Service's address and is not served", a)
			continue
		}
		s.ClusterIPs = append(s.ClusterIPs, a)
	}
}

func (f *faults) ingress(s *service.Service, list []corev1.LoadBalancerIngress) {
	for _, in := range list {
		if in.IP == "" {
			if in.Hostname != "" {
				s.LoadBalancerHostnames = append(s.LoadBalancerHostnames, in.Hostname)
			}
			continue
		}
		a, ok := f.addr("status.loadBalancer.ingress.ip", in.IP)
		if !ok {
			continue
		}
		if in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy {
			s.ProxyIPs = append(s.ProxyIPs, a)
		} else {
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, a)
		}
	}
}

func (f *faults) ports(s *service.Service, list []corev1.ServicePort) {
	for i := range list {
		p := &list[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		protocol, ok := f.protocol(field, p.Protocol)
		if !ok {
			continue
		}
		number, ok := f.port(field+".port", p.Port)
		if !ok {
			continue
		}
		port := service.Port{Name: p.Name, Protocol: protocol, Port: number, TargetPort: p.TargetPort.String()}
		if p.NodePort != 0 {
			port.NodePort, _ = f.port(field+".nodePort", p.NodePort)
		}
		if at := slices.IndexFunc(s.Ports, func(o service.Port) bool {
			return o.Protocol == protocol && (o.Port == number || o.Name == p.Name)
		}); at >= 0 {
			f.add(service.ReasonInvalidPort, "%s has the name or the number of spec.ports[%d] and is not served; give each its own", field, at)
			continue
		}
		s.Ports = append(s.Ports, port)
	}
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
	seconds := int32(corev1.DefaultClientIPServiceAffinitySeconds)
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > 86400 {
		f.add(service.ReasonInvalidField, "spec.sessionAffinityConfig.clientIP.timeoutSeconds %d is out of range: %d is used; use 1 to 86400", seconds, corev1.DefaultClientIPServiceAffinitySeconds)
		seconds = corev1.DefaultClientIPServiceAffinitySeconds
	}
	s.Affinity = time.Duration(seconds) * time.Second
}

// EndpointSlice converts a slice. It is nil when the slice concerns no proxy:
// it belongs to no Service, or holds names.
func (c *Converter) EndpointSlice(obj *discoveryv1.EndpointSlice) (*service.EndpointSlice, []service.Problem) {
	name := service.Name{Namespace: obj.Namespace, Name: obj.Name}
	f := &faults{object: "EndpointSlice " + name.String()}
	owner := obj.Labels[discoveryv1.LabelServiceName]
	_, headless := obj.Labels[labelHeadless]
	if owner == "" || obj.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, nil
	}
	s := &service.EndpointSlice{Name: name, Service: owner, Headless: headless}
	switch obj.AddressType {
	case discoveryv1.AddressTypeIPv4:
		s.Family = service.IPv4
	case discoveryv1.AddressTypeIPv6:
		s.Family = service.IPv6
	default:
		f.add(service.ReasonInvalidField, "addressType %q is none: its endpoints are not used; use IPv4 or IPv6", obj.AddressType)
		return nil, f.list
	}
	f.slicePorts(s, obj.Ports)
	s.Endpoints = make([]service.Endpoint, 0, len(obj.Endpoints))
	for i := range obj.Endpoints {
		if e, ok := f.endpoint(s.Family, i, &obj.Endpoints[i]); ok {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s, f.list
}

func (f *faults) slicePorts(s *service.EndpointSlice, list []discoveryv1.EndpointPort) {
	for i, p := range list {
		if p.Name == nil || p.Port == nil {
			continue
		}
		field := fmt.Sprintf("ports[%d]", i)
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		proto, ok := f.protocol(field, protocol)
		if !ok {
			continue
		}
		if number, ok := f.port(field+".port", *p.Port); ok {
			s.Ports = append(s.Ports, service.SlicePort{Name: *p.Name, Protocol: proto, Port: number})
		}
	}
}

func (f *faults) endpoint(family service.Family, i int, e *discoveryv1.Endpoint) (service.Endpoint, bool) {
	if len(e.Addresses) == 0 {
		f.add(service.ReasonInvalidAddress, "endpoints[%d] has no address and is not used", i)
		return service.Endpoint{}, false
	}
	field := fmt.Sprintf("endpoints[%d].addresses", i)
	a, ok := f.addr(field, e.Addresses[0])
	if !ok {
		return service.Endpoint{}, false
	}
	if service.FamilyOf(a) != family {
		f.add(service.ReasonWrongFamily, "%s %s is not %s, the slice's addressType, and is not used", field, a, family)
		return service.Endpoint{}, false
	}
	if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		f.add(service.ReasonInvalidAddress, "%s %s cannot be an endpoint's and is not used: it is unspecified, loopback, link-local or multicast", field, a)
		return service.Endpoint{}, false
	}
	out := service.Endpoint{
		Addr: a, Ready: isTrue(e.Conditions.Ready, true), Serving: isTrue(e.Conditions.Serving, true),
		Terminating: isTrue(e.Conditions.Terminating, false),
	}
	if e.NodeName != nil {
		out.NodeName = *e.NodeName
	}
	if e.Zone != nil {
		out.Zone = *e.Zone
	}
	if e.TargetRef != nil {
		out.Target = e.TargetRef.Name
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.ZoneHints = append(out.ZoneHints, z.Name)
		}
		for _, n := range e.Hints.ForNodes {
			out.NodeHints = append(out.NodeHints, n.Name)
		}
	}
	return out, true
}

func isTrue(condition *bool, absent bool) bool {
	if condition == nil {
		return absent
	}
	return *condition
}

// Node converts the Node object of this node.
func (c *Converter) Node(obj *corev1.Node) (service.Node, []service.Problem) {
	f := &faults{object: "Node " + obj.Name}
	n := service.Node{Name: obj.Name, Zone: obj.Labels[corev1.LabelTopologyZone]}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range obj.Status.Addresses {
			if a.Type != kind {
				continue
			}
			if addr, ok := f.addr("status.addresses", a.Address); ok {
				n.Addresses = append(n.Addresses, addr)
			}
		}
	}
	return n, f.list
}

// ServiceCIDR converts a ServiceCIDR object.
func (c *Converter) ServiceCIDR(obj *networkingv1.ServiceCIDR) ([]netip.Prefix, []service.Problem) {
	f := &faults{object: "ServiceCIDR " + obj.Name}
	var out []netip.Prefix
	for _, text := range obj.Spec.CIDRs {
		if p, ok := f.prefix("spec.cidrs", text); ok {
			out = append(out, p)
		}
	}
	return out, f.list
}
