// SPDX-License-Identifier: Apache-2.0

// Needs root, for the probes.

package kernel_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/test/kernel"
)

func TestThisKernelHasWhatTheTableSays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: probes load programs and make devices")
	}
	series, release := kernel.Running()
	t.Logf("Linux %s, series %q", release, series)
	for _, f := range kernel.Features() {
		t.Run(f.Name, func(t *testing.T) { kernel.Need(t, f) })
	}
}

func TestAReleaseBelongsToItsSeries(t *testing.T) {
	for release, want := range map[string]kernel.Series{
		"6.1.0-56-cloud-amd64":       kernel.Linux6_1,
		"6.1.192":                    kernel.Linux6_1,
		"6.12.117+deb12-cloud-amd64": kernel.Linux6_12,
		"6.12-rc3":                   kernel.Linux6_12,
		"6.18.5":                     kernel.Newest,
		"6.19":                       kernel.Newest,
		"7.0.1":                      kernel.Newest,
		"6.6.30":                     "",
		"6.11.1":                     "",
		"5.10.0":                     "",
		"5.20.1":                     "",
		"not a release":              "",
		"":                           "",
		"6.x":                        "",
	} {
		if got := kernel.SeriesOf(release); got != want {
			t.Errorf("%q belongs to %q, want %q", release, got, want)
		}
	}
}

// Everything in the table is asked for by a test: what nobody asks for is a
// claim that nobody checks.
func TestEveryFeatureIsAskedFor(t *testing.T) {
	table, err := os.ReadFile("features.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^\t(\w+) += Feature\{`).FindAllStringSubmatch(string(table), -1)
	if len(names) != len(kernel.Features()) {
		t.Fatalf("features.go declares %d features, Features has %d", len(names), len(kernel.Features()))
	}
	asked := map[string]bool{}
	question := regexp.MustCompile(`kernel\.(?:Need|Has)\(\S+, kernel\.(\w+)\)`)
	err = filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range question.FindAllStringSubmatch(string(text), -1) {
			asked[found[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !asked[name[1]] {
			t.Errorf("no test asks for %s", name[1])
		}
	}
}

// What is asked for must work somewhere.
func TestEveryFeatureMustWorkOnSomeKernel(t *testing.T) {
	for _, f := range kernel.Features() {
		if !f.Must(kernel.Linux6_1) && !f.Must(kernel.Linux6_12) && !f.Must(kernel.Newest) {
			t.Errorf("%s: tests that need it would be skipped everywhere", f.Name)
		}
		if f.Must("") {
			t.Errorf("%s: must work on a kernel that is not in the matrix", f.Name)
		}
	}
}

// recorder takes what Need decides.
type recorder struct{ verdict string }

func (r *recorder) Helper()               {}
func (r *recorder) Fatalf(string, ...any) { r.end("failed") }
func (r *recorder) Skipf(string, ...any)  { r.end("skipped") }
func (r *recorder) end(verdict string)    { r.verdict = verdict; runtime.Goexit() }

func TestAMissingFeatureFailsWhereTheTableHasItAndIsSkippedElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: without, a probe finds out nothing")
	}
	series, _ := kernel.Running()
	if series == "" {
		series = kernel.Newest // it is not this kernel's: nothing is promised here
	}
	promised, _ := kernel.Running()
	for name, c := range map[string]struct {
		on    []kernel.Series
		probe error
		want  string
	}{
		"there":                       {nil, nil, "ran"},
		"missing and promised":        {[]kernel.Series{series}, ebpf.ErrNotSupported, map[bool]string{true: "failed", false: "skipped"}[promised != ""]},
		"missing and not promised":    {nil, ebpf.ErrNotSupported, "skipped"},
		"nobody could find out":       {nil, errors.New("out of memory"), "failed"},
		"found out that it is broken": {[]kernel.Series{series}, errors.New("EIO"), "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{verdict: "ran"}
			done := make(chan struct{})
			go func() {
				defer close(done)
				kernel.Need(r, kernel.Probed(name, c.on, func() error { return c.probe }))
			}()
			<-done
			if r.verdict != c.want {
				t.Errorf("the test %s, want %s", r.verdict, c.want)
			}
		})
	}
}
