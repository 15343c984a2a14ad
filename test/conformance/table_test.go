// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

const (
	rowCount     = 198
	documentPath = "../../docs/conformance.md"
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
				s.wire = s.wire || st.who != "" && st.fromWire()
				s.socket = s.socket || st.who != "" && !st.fromWire()
			}
		}
	}
	return out
}

// The list is whole, each row is shown or says why not, and the document says
// the same. Only a run of all behaviours writes it.
func TestTheTableIsWholeAndTrue(t *testing.T) {
	behaviours := readBehaviours(t)
	rows, have := readRows(t), showing(behaviours)
	for i, r := range rows {
		if r.number != i+1 {
			t.Fatalf("row %d stands where %d belongs", r.number, i+1)
		}
		s := have[r.number]
		delete(have, r.number)
		if s == nil && r.note == "" {
			t.Errorf("row %d is in no file, and does not say why: %s", r.number, r.title)
		}
		if s != nil && (r.concerns("s") && !s.socket || r.concerns("w") && !s.wire) {
			t.Errorf("row %d concerns %q, its files %v lack some of that", r.number, r.hooks, s.files)
		}
	}
	if len(rows) != rowCount {
		t.Errorf("%d rows, the list has %d", len(rows), rowCount)
	}
	for number, s := range have {
		t.Errorf("files %v name row %d, which is none", s.files, number)
	}
	old, err := os.ReadFile(documentPath)
	if err != nil || string(old) != document(t, behaviours) {
		t.Errorf("docs/conformance.md is not what the files say (%v); run: make conformance", err)
	}
}

func (r *row) concerns(hook string) bool { return strings.Contains(r.hooks, hook) }

// cell tells what is shown of a row at a hook.
func (r *row) cell(hook string, is bool) string {
	switch {
	case !r.concerns(hook):
		return "–"
	case is:
		return "yes"
	case strings.Contains(r.note, "not shown"):
		return "**not shown**"
	}
	return "elsewhere"
}

// document is the text of docs/conformance.md.
func document(t *testing.T, behaviours []behaviour) string {
	rows, have := readRows(t), showing(behaviours)
	var out strings.Builder
	out.WriteString(preface)
	section, here, elsewhere, not := "", 0, 0, 0
	for i := range rows {
		r := &rows[i]
		s := have[r.number]
		if s == nil {
			s = &shown{}
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
		socket, wire := r.cell("s", s.socket), r.cell("w", s.wire)
		fmt.Fprintf(&out, "| %d | %s | %s | %s | %s | %s |\n", r.number, r.title, socket, wire, wire, strings.Join(where, "; "))
		switch {
		case len(s.files) > 0:
			here++
		case strings.Contains(r.note, "not shown"):
			not++
		default:
			elsewhere++
		}
	}
	return strings.Replace(out.String(), "COUNTS", fmt.Sprintf("Of %d behaviours %d are shown by these files, %d by other tests, and %d are not shown yet.",
		len(rows), here, elsewhere, not), 1)
}

const preface = `# Behaviours of a Service

What Kubernetes defines, from its own tests, code and enhancement proposals (1.36), and where Portolan shows it. The
table is written by ` + "`make conformance`" + `, which runs every file of ` + "`test/conformance/testdata`" + ` through the loaded
programs of two nodes: sockets of pods and of the node itself, and a client outside, by tc and by XDP. A row that gets
lost fails ` + "`make test`" + `.

"elsewhere" names the test; "–" means that the behaviour does not concern that hook.

COUNTS
`
