// SPDX-License-Identifier: Apache-2.0

// Needs root: real tables, no programs.

package reconcile

import "testing"

// A way that was looked up between the change of a device and its entry here
// knows the device as it was.
func TestWaysAreLookedUpAnewWhenADeviceIsAnother(t *testing.T) {
	requireRoot(t)
	b := newBench(t, nil, services())
	defer b.r.set.Close()
	routes := func() uint32 { return b.r.set.WireConfig.Load(0).RouteGeneration }
	for _, step := range []struct {
		name    string
		devices []Device
		anew    bool
	}{
		{"a device comes", []Device{{Index: 7}}, true},
		{"nothing changes", []Device{{Index: 7}}, false},
		{"it turns inward", []Device{{Index: 7, Inward: true}}, true},
		{"it goes", nil, true},
		{"it stays away", nil, false},
	} {
		before, n := routes(), testNode
		n.Devices = step.devices
		if err := b.r.ApplyNode(n); err != nil {
			t.Fatal(err)
		}
		if anew := routes() != before; anew != step.anew {
			t.Errorf("%s: looked up anew %v, want %v", step.name, anew, step.anew)
		}
	}
}
