// SPDX-License-Identifier: Apache-2.0

package compile

import "testing"

func TestNobodyCanForeseeWhereTheIndexPutsAnAddress(t *testing.T) {
	if a, b := newCompiler().index.seed, newCompiler().index.seed; a == b {
		t.Errorf("two compilers share the seed %#x", a)
	}
}
