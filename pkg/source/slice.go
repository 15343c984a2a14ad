// SPDX-License-Identifier: Apache-2.0

package source

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"portolan.dev/portolan/pkg/service"
)

// labelHeadless marks slices that are DNS's business. It counts on slices
// only: on a Service it means nothing, as service-proxy-name means nothing on
// a slice.
const labelHeadless = corev1.IsHeadlessService

// EndpointSlice converts a slice. It is nil when the slice concerns no proxy:
// it belongs to no Service, or holds names.
func (c *Converter) EndpointSlice(obj *discoveryv1.EndpointSlice) (*service.EndpointSlice, []service.Problem) {
	owner := obj.Labels[discoveryv1.LabelServiceName]
	if owner == "" || obj.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, nil
	}
	f := &faults{kind: "EndpointSlice", namespace: obj.Namespace, name: obj.Name}
	_, headless := obj.Labels[labelHeadless]
	s := &service.EndpointSlice{
		Name:    service.Name{Namespace: interned(obj.Namespace), Name: obj.Name},
		Service: owner, Headless: headless,
	}
	switch obj.AddressType {
	case discoveryv1.AddressTypeIPv4:
		s.Family = service.IPv4
	case discoveryv1.AddressTypeIPv6:
		s.Family = service.IPv6
	default:
		f.add(service.ReasonInvalidField, "addressType %q is none: its endpoints are not used; use IPv4 or IPv6", obj.AddressType)
		return nil, f.all()
	}
	if text := obj.Annotations[corev1.EndpointsLastChangeTriggerTime]; text != "" {
		// One that cannot be read leaves the time unknown.
		s.ChangedAt, _ = time.Parse(time.RFC3339Nano, text)
	}
	f.weight(s, obj.Annotations)
	f.slicePorts(s, obj.Ports)
	s.Endpoints = make([]service.Endpoint, 0, len(obj.Endpoints))
	for i := range obj.Endpoints {
		if e, ok := f.endpoint(s.Family, i, &obj.Endpoints[i]); ok {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s, f.all()
}

// slicePorts passes over ports without a name or a number, as the API says: it
// is no mistake to have them.
func (f *faults) slicePorts(s *service.EndpointSlice, list []discoveryv1.EndpointPort) {
	s.Ports = make([]service.SlicePort, 0, len(list))
	for i := range list {
		p := &list[i]
		if p.Name == nil || p.Port == nil {
			continue
		}
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		proto, ok := f.protocol(of("ports", i).sub(".protocol"), protocol)
		if !ok {
			continue
		}
		if number, ok := f.port(of("ports", i).sub(".port"), *p.Port); ok {
			s.Ports = append(s.Ports, service.SlicePort{Name: interned(*p.Name), Protocol: proto, Port: number})
		}
	}
}

// endpoint converts an endpoint; only its first address is ever used.
func (f *faults) endpoint(family service.Family, i int, e *discoveryv1.Endpoint) (service.Endpoint, bool) {
	at := of("endpoints", i).sub(".addresses")
	if len(e.Addresses) == 0 {
		f.add(service.ReasonInvalidAddress, "%s is empty and the endpoint is not used; give it an address", at)
		return service.Endpoint{}, false
	}
	a, ok := f.addr(at, e.Addresses[0])
	if !ok {
		return service.Endpoint{}, false
	}
	if service.FamilyOf(a) != family {
		f.add(service.ReasonWrongFamily, "%s %s is not %s, the slice's addressType, and is not used; put it into a slice of its family", at, a, family)
		return service.Endpoint{}, false
	}
	if special(a) {
		f.add(service.ReasonInvalidAddress, "%s %s cannot be an endpoint's and is not used: %s", at, a, specialKinds)
		return service.Endpoint{}, false
	}
	out := service.Endpoint{
		Addr: a, Ready: isTrue(e.Conditions.Ready, true), Serving: isTrue(e.Conditions.Serving, true),
		Terminating: isTrue(e.Conditions.Terminating, false),
	}
	if e.NodeName != nil {
		out.NodeName = interned(*e.NodeName)
	}
	if e.Zone != nil {
		out.Zone = interned(*e.Zone)
	}
	if e.TargetRef != nil {
		out.Target = e.TargetRef.Name
	}
	if e.Hints != nil {
		for i := range e.Hints.ForZones {
			out.ZoneHints = append(out.ZoneHints, interned(e.Hints.ForZones[i].Name))
		}
		for i := range e.Hints.ForNodes {
			out.NodeHints = append(out.NodeHints, interned(e.Hints.ForNodes[i].Name))
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
