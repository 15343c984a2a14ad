// SPDX-License-Identifier: Apache-2.0

package config

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the tables of docs/config.md anew")

const docFile = "../../docs/config.md"

// flagTable is every flag with its field, its default and what it is for.
func flagTable() string {
	var c Config
	f := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	c.Flags(f)
	out := "| flag | field | default | |\n|---|---|---|---|\n"
	f.VisitAll(func(flag *pflag.Flag) {
		_, usage := pflag.UnquoteUsage(flag)
		field := "`" + fieldOf(flag.Name) + "`"
		if !configurable(flag) {
			field = ""
		}
		value := flag.DefValue
		if value == "[]" || value == "" {
			value = ""
		} else {
			value = "`" + value + "`"
		}
		out += fmt.Sprintf("| `--%s` | %s | %s | %s |\n", flag.Name, field, value, strings.ReplaceAll(usage, "|", "\\|"))
	})
	return out
}

// ignoredTable is every field of kube-proxy's that is ignored, and why.
func ignoredTable() string {
	var rows []string
	for path, why := range proxyFields {
		if why != "" {
			rows = append(rows, fmt.Sprintf("| `%s` | %s |\n", path, why))
		}
	}
	slices.Sort(rows)
	return "| field | why |\n|---|---|\n" + strings.Join(rows, "")
}

// within replaces what stands between the marks of a table.
func within(t *testing.T, text, name, table string) string {
	t.Helper()
	begin, end := "<!-- "+name+": made by go test ./pkg/config -update -->\n", "<!-- end -->"
	before, rest, found := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("docs/config.md has no table %s", name)
	}
	return before + begin + table + end + after
}

func TestTheDocumentHasEveryFlagAndField(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	want := within(t, within(t, string(data), "flags", flagTable()), "ignored", ignoredTable())
	if *update {
		if err := os.WriteFile(docFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(data) != want {
		t.Error("the tables of docs/config.md are not those of the code; run: go test ./pkg/config -update")
	}
	for path, why := range proxyFields {
		if why == "" && !strings.Contains(want, "`"+path+"`") {
			t.Errorf("docs/config.md does not tell what becomes of %s", path)
		}
	}
}
