// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"

	"portolan.dev/portolan/pkg/config"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
)

// A device is served in one way: as a pod's if --pod-devices says so, though it
// looks like one that leads out of the node, as a virtual machine's tap does.
func TestAPodsDeviceLeadsNotOutward(t *testing.T) {
	t.Parallel()
	links := []node.Link{
		{Index: 2, Name: "eth0", Kind: "device", Up: true, Default: true, LinkHeader: true},
		{Index: 3, Name: "tap0", Kind: "tuntap", Up: true, LinkHeader: true},
		{Index: 4, Name: "tun0", Kind: "tuntap", Up: true},
	}
	for name, c := range map[string]struct {
		devices, pods []string
		want          []int // outward
	}{
		"automatic":         {nil, nil, []int{2, 3, 4}},
		"pods' devices":     {nil, []string{"tap*"}, []int{2, 4}},
		"named as both":     {[]string{"eth0", "t*"}, []string{"tap*"}, []int{2, 4}},
		"no pattern fits":   {nil, []string{"cali*"}, []int{2, 3, 4}},
		"named, no pattern": {[]string{"eth0"}, nil, []int{2}},
	} {
		a := &Agent{links: links, cfg: Config{Options: config.Config{Devices: c.devices, PodDevices: c.pods}}}
		var got []int
		for _, l := range a.outward(links) {
			got = append(got, l.Index)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: outward are %v, want %v", name, got, c.want)
		}
		inward := func(d reconcile.Device) bool { return d.Inward }
		if n := len(slices.DeleteFunc(a.wireDevices(), inward)); n != len(c.want) {
			t.Errorf("%s: the tables call %d devices outward, want %d", name, n, len(c.want))
		}
	}
}
