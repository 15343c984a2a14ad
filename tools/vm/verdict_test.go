// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestOnlyAnAnswerForEverySuiteIsAPass(t *testing.T) {
	done, ok, bad := record{Done: true}, record{Package: "maps"}, record{Package: "loader", Failed: "exit status 1"}
	for _, c := range []struct {
		name    string
		records []record
		want    error
		code    int
	}{
		{"all passed", []record{ok, ok, done}, nil, 0},
		{"one failed", []record{ok, bad, done}, errFailed, 1},
		{"one failed, then the kernel died", []record{bad}, errFailed, 1},
		{"silence", nil, errSilent, exitSilent},
		{"the kernel died between two", []record{ok}, errSilent, exitSilent},
		{"the end is missing", []record{ok, ok}, errSilent, exitSilent},
		{"a suite is missing", []record{ok, done}, errSilent, exitSilent},
	} {
		err := judge(c.records, 2)
		if !errors.Is(err, c.want) || exitCode(err) != c.code {
			t.Errorf("%s: %v, code %d; want %v, code %d", c.name, err, exitCode(err), c.want, c.code)
		}
	}
	if code := exitCode(errors.Join(nil, fmt.Errorf("kernel 6.12: %w", errSilent))); code != exitSilent {
		t.Errorf("one kernel of two died: code %d", code)
	}
	if exitCode(errTimeout) != exitTimeout || exitCode(errors.New("no QEMU")) != exitUnprepared {
		t.Error("a timeout or a run that could not be prepared has another exit code")
	}
}

func TestWhatAGuestSaysIsShownWhenItsTurnComes(t *testing.T) {
	var h held
	var shown strings.Builder
	fmt.Fprint(&h, "before, ")
	if shown.Len() > 0 {
		t.Errorf("shown before its turn: %s", &shown)
	}
	h.release(&shown)
	fmt.Fprint(&h, "after")
	if shown.String() != "before, after" {
		t.Errorf("shown: %s", &shown)
	}
}

func TestARunSaysAtItsEndWhatWasSkippedAndWhy(t *testing.T) {
	stream := "=== RUN   TestA\n    a_test.go:5: about A\n--- PASS: TestA (0.00s)\n" +
		"=== RUN   TestB\n=== RUN   TestB/tcx\n    b_test.go:7: Linux 6.1 lacks tcx\n=== RUN   TestB/more\n    b_test.go:9: noise\n" +
		"--- FAIL: TestB (0.00s)\n    --- SKIP: TestB/tcx (0.00s)\n    --- FAIL: TestB/more (0.00s)\nFAIL\n"
	for size := 1; size < len(stream); size += 7 {
		var c tally
		for chunk := range slices.Chunk([]byte(stream), size) {
			if n, err := c.Write(chunk); n != len(chunk) || err != nil {
				t.Fatalf("write %d of %d: %v", n, len(chunk), err)
			}
		}
		if got := c.String(); !strings.HasPrefix(got, "1 passed, 2 failed, 1 skipped\n  skipped TestB/tcx: b_test.go:7: Linux 6.1 lacks tcx") {
			t.Errorf("in pieces of %d: %s", size, got)
		}
	}
}

func TestTheImagePackageIsFoundBehindItsMetapackage(t *testing.T) {
	shown := "Package: linux-image-cloud-amd64\nDepends: foo, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nVersion: 6.1.192-2\n"
	if got := imagePackage(shown, "6.1"); got != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("found %q", got)
	}
	// On a later release the metapackage leads to another series.
	if got := imagePackage(strings.ReplaceAll(shown, "6.1.", "6.12."), "6.1"); got != "" {
		t.Errorf("found %q for series 6.1", got)
	}
	if got := field(shown, "Version"); got != "6.1.192-2" {
		t.Errorf("version %q", got)
	}
}

func TestLibrariesAreThoseThatLddNames(t *testing.T) {
	ldd := "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n" +
		"\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n"
	if got, want := libraries(ldd), []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}; !slices.Equal(got, want) {
		t.Errorf("libraries %q, want %q", got, want)
	}
}
