// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
	note         string // where else it is shown, or "by design" and why
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

// The list is whole, each row is shown, names a test that is there, or is so by
// design, and the document says the same. Only a run of all behaviours writes it.
func TestTheTableIsWholeAndTrue(t *testing.T) {
	behaviours := readBehaviours(t)
	rows, have := readRows(t), showing(behaviours)
	for i, r := range rows {
		if r.number != i+1 {
			t.Fatalf("row %d stands where %d belongs", r.number, i+1)
		}
		s := have[r.number]
		delete(have, r.number)
		references := testsNamed(t, &r)
		if s == nil && references == 0 && !r.byDesign() {
			t.Errorf("row %d is in no file, and names neither a test nor a design: %s", r.number, r.title)
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

// testsNamed counts the tests that a row's note names: each must exist.
func testsNamed(t *testing.T, r *row) (tests int) {
	t.Helper()
	for _, reference := range reference.FindAllStringSubmatch(r.note, -1) {
		tests++
		what := reference[2] // a scenario's name, as a literal
		if !strings.HasPrefix(what, `"`) {
			what = "\nfunc " + what + "(t *testing.T)"
		}
		if !strings.Contains(testSources(t, reference[1]), what) {
			t.Errorf("row %d names %s in %s, where there is no such test", r.number, reference[2], reference[1])
		}
	}
	if quotes := strings.Count(r.note, "`"); quotes != 2*tests {
		t.Errorf("row %d has %d quotes and names %d tests: %s", r.number, quotes, tests, r.note)
	}
	return tests
}

// reference is `folder TestName` or `folder "name of a scenario"`.
var reference = regexp.MustCompile("`([a-z0-9/-]+) (Test[A-Za-z0-9]+|\"[^\"`]+\")`")

func testSources(t *testing.T, folder string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
	if err != nil || len(paths) == 0 {
		t.Errorf("no tests in %s (%v)", folder, err)
	}
	var out strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	return out.String()
}

// byDesign tells whether there is nothing to test.
func (r *row) byDesign() bool { return strings.HasPrefix(r.note, "by design") }

func (r *row) concerns(hook string) bool { return strings.Contains(r.hooks, hook) }

// cell tells what is shown of a row at a hook.
func (r *row) cell(hook string, is bool) string {
	switch {
	case !r.concerns(hook):
		return "–"
	case is:
		return "yes"
	case r.byDesign():
		return "by design"
	}
	return "elsewhere"
}

// document is the text of docs/conformance.md.
func document(t *testing.T, behaviours []behaviour) string {
	rows, have := readRows(t), showing(behaviours)
	var out strings.Builder
	out.WriteString(preface)
	section, here, elsewhere, design := "", 0, 0, 0
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
		case r.byDesign():
			design++
		default:
			elsewhere++
		}
	}
	return strings.Replace(out.String(), "COUNTS", fmt.Sprintf("Of %d behaviours %d are shown by these files, %d by other tests, and %d are so by design.",
		len(rows), here, elsewhere, design), 1)
}

const preface = `# Behaviours of a Service

What Kubernetes defines, from its own tests, code and enhancement proposals (1.36), and where Portolan shows it. The
table is written by ` + "`make conformance`" + `, which runs every file of ` + "`test/conformance/testdata`" + ` through the loaded
programs of two nodes: sockets of pods and of the node itself, and a client outside, by tc and by XDP. A row that gets
lost fails ` + "`make test`" + `.

"elsewhere" names the tests that show it; "by design" says why there is nothing to test; "–" means that the behaviour does
not concern that hook. In the column xdp tc serves nothing that XDP should have served.

COUNTS
`
