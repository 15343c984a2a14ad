// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"portolan.dev/portolan/pkg/service"
)

func parse[T any](t testing.TB, text string) *T {
	t.Helper()
	obj := new(T)
	if err := yaml.Unmarshal([]byte(text), obj); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return obj
}

// wantProblem checks that there is exactly one problem, and what it names.
func wantProblem(t *testing.T, problems []service.Problem, object, reason, says string) {
	t.Helper()
	if len(problems) != 1 || problems[0].Object != object || problems[0].Reason != reason || !strings.Contains(problems[0].Message, says) {
		t.Errorf("problems %v, want one of %s, reason %s, that says %q", problems, object, reason, says)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestAddressesAreReadAsOldAPIServersLetThemIn(t *testing.T) {
	for text, want := range map[string]string{
		"10.96.0.10":        "10.96.0.10",
		"010.096.000.0010":  "10.96.0.10",
		"fd00:0:0::01":      "fd00::1",
		"::ffff:10.96.0.10": "10.96.0.10",
	} {
		f := &faults{kind: "Service"}
		a, ok := f.addr(plain("x"), text)
		if !ok || a.String() != want || (len(f.list) > 0) != strings.HasPrefix(text, "0") {
			t.Errorf("%q is %v, %v, problems %v; want %s", text, a, ok, f.list, want)
		}
	}
}

func TestWhatIsNoAddressIsLeftOut(t *testing.T) {
	for _, text := range []string{"", " ", "web", "10.96.0.256", "10.96.0", "10.96.0.1.2", "10.96.0.1/32", "10.96.0.-1", "0x0a.96.0.1", "fe80::1%eth0", "fd00::1::1", "10.96.0.1 "} {
		f := &faults{kind: "Service"}
		if a, ok := f.addr(plain("x"), text); ok || len(f.list) != 1 || f.list[0].Reason != service.ReasonInvalidAddress {
			t.Errorf("%q is %v, problems %v", text, a, f.list)
		}
	}
}

func TestRangesAreReadAsOldAPIServersLetThemIn(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.0/24":        "192.0.2.0/24",
		" 192.0.2.7/24\t":     "192.0.2.0/24",
		"192.000.002.0/024":   "192.0.2.0/24",
		"fd00::/08":           "fd00::/8",
		"0.0.0.0/0":           "0.0.0.0/0",
		"::ffff:10.0.0.0/104": "10.0.0.0/8",
	} {
		f := &faults{kind: "Service"}
		if p, ok := f.prefix(plain("x"), text); !ok || p.String() != want {
			t.Errorf("%q is %v, %v, problems %v; want %s", text, p, ok, f.list, want)
		}
	}
}

func TestWhatIsNoRangeIsLeftOut(t *testing.T) {
	for _, text := range []string{"", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "fd00::/129", "fe80::%eth0/64", "::ffff:10.0.0.0/8", "x/8", "10.0.0.0/"} {
		f := &faults{kind: "Service"}
		if p, ok := f.prefix(plain("x"), text); ok || len(f.list) != 1 || f.list[0].Reason != service.ReasonInvalidRange {
			t.Errorf("%q is %v, problems %v", text, p, f.list)
		}
	}
}

func TestManyFaultsOfOneObjectAreToldAsOne(t *testing.T) {
	f := &faults{kind: "EndpointSlice", namespace: "default", name: "web-1"}
	for range 1000 {
		f.add(service.ReasonInvalidAddress, "x")
	}
	problems := f.all()
	if len(problems) != maxFaults || !strings.Contains(problems[maxFaults-1].Message, "984 more") {
		t.Errorf("%d problems, the last %v", len(problems), problems[len(problems)-1])
	}
}

func TestANodeHasAZoneAndAddressesInOrder(t *testing.T) {
	n, problems := (&Converter{}).Node(parse[corev1.Node](t, `
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
status: {addresses: [{type: Hostname, address: n1}, {type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: "fd00::1"}, {type: InternalIP, address: x}]}`))
	if n.Name != "n1" || n.Zone != "a" || !equal(n.Addresses, addrs("192.168.0.1", "fd00::1", "203.0.113.1")) {
		t.Errorf("%+v", n)
	}
	wantProblem(t, problems, "Node n1", service.ReasonInvalidAddress, "status.addresses[4]")
}

func TestAServiceCIDRIsItsRanges(t *testing.T) {
	cidrs, problems := (&Converter{}).ServiceCIDR(parse[networkingv1.ServiceCIDR](t, `
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/12, "fd00:96::/112", nonsense]}`))
	if !equal(cidrs, prefixes("10.96.0.0/12", "fd00:96::/112")) {
		t.Errorf("%v", cidrs)
	}
	wantProblem(t, problems, "ServiceCIDR kubernetes", service.ReasonInvalidRange, "spec.cidrs[2]")
}

func equal[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestANodeThatIsAboutToGoSaysWhy(t *testing.T) {
	taints := func(keys ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		for _, key := range keys {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key})
		}
		return n
	}
	deleted := taints()
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	cordoned := taints("node.kubernetes.io/unschedulable")
	cordoned.Spec.Unschedulable = true
	for _, c := range []struct {
		node *corev1.Node
		want string
	}{
		{taints(), ""},
		{cordoned, ""},
		{taints("node.kubernetes.io/not-ready"), ""},
		{taints("a", "ToBeDeletedByClusterAutoscaler"), "the node has the taint ToBeDeletedByClusterAutoscaler"},
		{deleted, "the node is being deleted"},
	} {
		if n, _ := (&Converter{}).Node(c.node); n.Leaving != c.want {
			t.Errorf("node with taints %v: leaving because %q, want %q", c.node.Spec.Taints, n.Leaving, c.want)
		}
	}
}
