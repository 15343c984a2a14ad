// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
)

// Whatever a program declares is a table, but for its constants and what it
// keeps for itself within one run.
func TestEveryTableOfEveryProgramIsDeclared(t *testing.T) {
	specs, err := Specs(Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	private := map[string]bool{".rodata": true, "request_scratch": true}
	for object, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"sock": bpf.LoadSock, "close": bpf.LoadClose, "tc": bpf.LoadTc, "xdp": bpf.LoadXdp, "sweep": bpf.LoadSweep,
	} {
		programs, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, m := range programs.Maps {
			if table := specs[name]; table == nil && !private[name] {
				t.Errorf("%s: %s is no table", object, name)
			} else if table != nil && (m.Type != table.Type || m.KeySize != table.KeySize || m.ValueSize != table.ValueSize || m.MaxEntries != table.MaxEntries || m.Flags != table.Flags) {
				t.Errorf("%s declares %v, the tables have %v", object, m, table)
			}
		}
	}
}
