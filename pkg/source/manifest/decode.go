// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// objects are the objects of a file, or of all.
type objects struct {
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.EndpointSlice
	cidrs    map[string][]netip.Prefix
	node     *service.Node
}

func newObjects() objects {
	return objects{services: map[service.Name]*service.Service{}, slices: map[service.Name]*service.EndpointSlice{}, cidrs: map[string][]netip.Prefix{}}
}

func (o *objects) count() int { return len(o.services) + len(o.slices) + len(o.cidrs) }

// keys name the objects as problems do.
func (o *objects) keys() []string {
	var out []string
	for name := range o.services {
		out = append(out, "Service "+name.String())
	}
	for name := range o.slices {
		out = append(out, "EndpointSlice "+name.String())
	}
	for name := range o.cidrs {
		out = append(out, "ServiceCIDR "+name)
	}
	return out
}

// add takes over what is not there yet and names what is there already.
func (o *objects) add(other *objects) (twice []string) {
	for name, v := range other.services {
		if o.services[name] != nil {
			twice = append(twice, "Service "+name.String())
			continue
		}
		o.services[name] = v
	}
	for name, v := range other.slices {
		if o.slices[name] != nil {
			twice = append(twice, "EndpointSlice "+name.String())
			continue
		}
		o.slices[name] = v
	}
	for name, v := range other.cidrs {
		if o.cidrs[name] != nil {
			twice = append(twice, "ServiceCIDR "+name)
			continue
		}
		o.cidrs[name] = v
	}
	if o.node == nil {
		o.node = other.node
	}
	return twice
}

// prefixes are all service CIDRs, sorted.
func (o *objects) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, list := range o.cidrs {
		out = append(out, list...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// decoder reads one file.
type decoder struct {
	convert  source.Converter
	node     string
	file     string
	objects  objects
	problems []service.Problem
}

// decode reads every document. An error means that the file as a whole is not
// to be trusted; a document of an unknown kind is only reported.
func (d *decoder) decode(data []byte) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		if err := d.object(document, fmt.Sprintf("document %d", n)); err != nil {
			return err
		}
	}
}

func (d *decoder) object(document []byte, where string) error {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	switch meta.APIVersion + " " + meta.Kind {
	case " ": // comments only
		return d.comment(document, where)
	case "v1 List", "v1 ServiceList", "discovery.k8s.io/v1 EndpointSliceList", "v1 NodeList", "networking.k8s.io/v1 ServiceCIDRList":
		return d.list(document, where)
	case "v1 Service":
		var obj corev1.Service
		if err := d.strict(document, where, &obj); err != nil {
			return err
		}
		d.service(&obj, where)
	case "discovery.k8s.io/v1 EndpointSlice":
		var obj discoveryv1.EndpointSlice
		if err := d.strict(document, where, &obj); err != nil {
			return err
		}
		d.slice(&obj, where)
	case "v1 Node":
		var obj corev1.Node
		if err := d.strict(document, where, &obj); err != nil {
			return err
		}
		if obj.Name == d.node {
			node, problems := d.convert.Node(&obj)
			d.objects.node = &node
			d.problems = append(d.problems, problems...)
		}
	case "networking.k8s.io/v1 ServiceCIDR":
		var obj networkingv1.ServiceCIDR
		if err := d.strict(document, where, &obj); err != nil {
			return err
		}
		cidrs, problems := d.convert.ServiceCIDR(&obj)
		d.objects.cidrs[obj.Name] = cidrs
		d.problems = append(d.problems, problems...)
	default:
		d.report(where, "%s %s is not read; Portolan reads v1 Service, discovery.k8s.io/v1 EndpointSlice, v1 Node, networking.k8s.io/v1 ServiceCIDR and lists of them", meta.APIVersion, meta.Kind)
	}
	return nil
}

func (d *decoder) comment(document []byte, where string) error {
	var anything any
	if err := yaml.Unmarshal(document, &anything); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	if anything != nil {
		d.report(where, "has no apiVersion and kind and is not read")
	}
	return nil
}

// strict reads an object. A field that does not exist is reported, for it is
// often a misspelt one, and the object is used as it is.
func (d *decoder) strict(document []byte, where string, obj any) error {
	strictErr := yaml.UnmarshalStrict(document, obj)
	if strictErr == nil {
		return nil
	}
	if err := yaml.Unmarshal(document, obj); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	d.report(where, "%v; the rest is used", strictErr)
	return nil
}

func (d *decoder) list(document []byte, where string) error {
	var list struct {
		Items []runtime.RawExtension `json:"items"`
	}
	if err := yaml.Unmarshal(document, &list); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	for i, item := range list.Items {
		if err := d.object(item.Raw, fmt.Sprintf("%s, item %d", where, i+1)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) service(obj *corev1.Service, where string) {
	if obj.Namespace == "" {
		obj.Namespace = metav1.NamespaceDefault
	}
	if obj.Name == "" {
		d.report(where, "a Service without metadata.name is not read")
		return
	}
	s, problems := d.convert.Service(obj)
	d.problems = append(d.problems, problems...)
	if d.objects.services[s.Name] != nil {
		d.report(where, "Service %s stands twice in this file; the later one is used", s.Name)
	}
	d.objects.services[s.Name] = s
}

func (d *decoder) slice(obj *discoveryv1.EndpointSlice, where string) {
	if obj.Namespace == "" {
		obj.Namespace = metav1.NamespaceDefault
	}
	if obj.Name == "" {
		d.report(where, "an EndpointSlice without metadata.name is not read")
		return
	}
	s, problems := d.convert.EndpointSlice(obj)
	d.problems = append(d.problems, problems...)
	if s == nil {
		return
	}
	if d.objects.slices[s.Name] != nil {
		d.report(where, "EndpointSlice %s stands twice in this file; the later one is used", s.Name)
	}
	d.objects.slices[s.Name] = s
}

func (d *decoder) report(where, format string, args ...any) {
	d.problems = append(d.problems, service.Problem{Object: "file " + d.file, Reason: service.ReasonUnreadable,
		Message: where + ": " + fmt.Sprintf(format, args...)})
}

func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
