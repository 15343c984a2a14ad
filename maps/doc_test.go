// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestTheDocumentHasEveryTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/maps.md")
	if err != nil {
		t.Fatal(err)
	}
	specs, err := Specs(Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		first, _, _ := strings.Cut(line[2:], "|")
		for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(first, -1) {
			named[m[1]] = true
			if specs[m[1]] == nil {
				t.Errorf("docs/maps.md describes %s, which is no table", m[1])
			}
		}
	}
	for name := range specs {
		if !named[name] {
			t.Errorf("docs/maps.md lacks table %s", name)
		}
	}
}
