// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	rowCount = 198
	document = "../../docs/conformance.md"
)

// row is a behaviour of the list.
type row struct {
	number       int
	hooks, title string
	note         string // where else it is shown, or why not here
	section      string
}

func readRows(t *testing.T) []row {
	t.Helper()
	text, err := os.ReadFile("rows.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []row
	section := ""
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = name
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "|")
		number, err := strconv.Atoi(fields[0])
		if err != nil || len(fields) != 4 {
			t.Fatalf("no row: %s", line)
		}
		out = append(out, row{number, fields[1], fields[2], fields[3], section})
	}
	return out
}

// shown is what the files show of each row: the hooks, and the files.
type shown struct {
	socket, wire bool
	files        []string
}

func showing(behaviours []behaviour) map[int]*shown {
	out := map[int]*shown{}
	for i := range behaviours {
		b := &behaviours[i]
		for _, number := range b.rows {
			if out[number] == nil {
				out[number] = &shown{}
			}
			s := out[number]
			s.files = append(s.files, b.name)
			for _, st := range b.steps {
				s.wire = s.wire || st.verb != "apply" && st.fromWire()
				s.socket = s.socket || st.verb != "apply" && !st.fromWire()
			}
		}
	}
	return out
}

// The list is whole, each row is shown or says why not, and the document says
// the same.
func TestTheTableIsWholeAndTrue(t *testing.T) {
	rows, have := readRows(t), showing(readBehaviours(t))
	var out strings.Builder
	out.WriteString(preface)
	section, counts := "", map[string]int{}
	for i, r := range rows {
		if r.number != i+1 {
			t.Fatalf("row %d stands where %d belongs", r.number, i+1)
		}
		s := have[r.number]
		delete(have, r.number)
		if s == nil {
			s = &shown{}
			if r.note == "" {
				t.Errorf("row %d is in no file, and does not say why: %s", r.number, r.title)
			}
		}
		concerns := func(hook string) bool { return strings.Contains(r.hooks, hook) }
		if len(s.files) > 0 && (concerns("s") && !s.socket || concerns("w") && !s.wire) {
			t.Errorf("row %d concerns %q, its files %v lack some of that", r.number, r.hooks, s.files)
		}
		cell := func(hook string, is bool) string {
			switch {
			case !concerns(hook):
				return "–"
			case is:
				return "yes"
			case strings.Contains(r.note, "not shown"):
				return "**not shown**"
			}
			return "elsewhere"
		}
		if r.section != section {
			section = r.section
			fmt.Fprintf(&out, "\n## %s\n\n| # | behaviour | socket | tc | xdp | shown by, or why not |\n|---|---|---|---|---|---|\n", section)
		}
		var where []string
		for _, f := range s.files {
			where = append(where, "`"+f+"`")
		}
		if r.note != "" {
			where = append(where, r.note)
		}
		socket, wire := cell("s", s.socket), cell("w", s.wire)
		fmt.Fprintf(&out, "| %d | %s | %s | %s | %s | %s |\n", r.number, r.title, socket, wire, wire, strings.Join(where, "; "))
		switch {
		case len(s.files) > 0:
			counts["here"]++
		case strings.Contains(r.note, "not shown"):
			counts["not"]++
		default:
			counts["elsewhere"]++
		}
	}
	if len(rows) != rowCount {
		t.Errorf("%d rows, the list has %d", len(rows), rowCount)
	}
	for number, s := range have {
		t.Errorf("files %v name row %d, which is none", s.files, number)
	}
	text := strings.Replace(out.String(), "COUNTS", fmt.Sprintf("Of %d behaviours %d are shown by these files, %d by other tests, and %d are not shown yet.",
		len(rows), counts["here"], counts["elsewhere"], counts["not"]), 1)
	if *update {
		if err := os.WriteFile(document, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, err := os.ReadFile(document)
	if err != nil || !slices.Equal(old, []byte(text)) {
		t.Errorf("docs/conformance.md is not what the files say (%v); run: make conformance", err)
	}
}

const preface = `# Behaviours of a Service

What Kubernetes defines, from its own tests, code and enhancement proposals (1.36), and where Portolan shows it. The
table is written by ` + "`make conformance`" + `, which runs every file of ` + "`test/conformance/testdata`" + ` through the loaded
programs of two nodes: sockets of pods and of the node itself, and a client outside, by tc and by XDP. A row that gets
lost fails ` + "`make test`" + `.

"elsewhere" names the test; "–" means that the behaviour does not concern that hook.

COUNTS
`
