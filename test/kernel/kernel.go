// SPDX-License-Identifier: Apache-2.0

// Package kernel knows which kernel must be able to do what. A test that relies
// on a feature asks for it by Need; a kernel of the matrix that ought to have it
// and has not fails the test, so that the matrix does not turn green by skipping.
//
// It imports no package of Portolan: every test may use it, and what it finds
// out is a second opinion on the loader's own probes.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TB is what Need needs of a testing.TB.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Series are the kernels that tests run on. Between two of them nothing is
// promised: a feature that is missing there is skipped.
type Series string

const (
	// Linux6_1 is the oldest supported: Debian 12's.
	Linux6_1 Series = "6.1"
	// Linux6_12 is the one with everything: Debian 13's, as Debian 12 has it.
	Linux6_12 Series = "6.12"
	// Newest is 6.18 and later, where the tests run without a virtual
	// machine; its configuration is the machine's, so a feature that Debian
	// builds as a module need not be there.
	Newest Series = "newest"
)

// Need skips the test on a kernel that may lack the feature, and fails it where
// the table says that it must be there.
func Need(tb TB, f Feature) {
	tb.Helper()
	err := f.Probe()
	if err == nil {
		return
	}
	series, release := Running()
	switch {
	case !errors.Is(err, ebpf.ErrNotSupported):
		tb.Fatalf("find out whether Linux %s has %s: %v", release, f.Name, err)
	case f.Must(series):
		tb.Fatalf("Linux %s lacks %s, which the table of test/kernel says it has: %v", release, f.Name, err)
	default:
		tb.Skipf("Linux %s lacks %s", release, f.Name)
	}
}

// Has tells whether the kernel has the feature, for tests that expect one thing
// or another. As Need, it fails the test where the table disagrees.
func Has(tb TB, f Feature) bool {
	tb.Helper()
	err := f.Probe()
	series, release := Running()
	if err != nil && (f.Must(series) || !errors.Is(err, ebpf.ErrNotSupported)) {
		tb.Fatalf("Linux %s lacks %s, which the table of test/kernel says it has: %v", release, f.Name, err)
	}
	return err == nil
}

// Running is the series of this kernel, or "" when the matrix has none like it,
// and its full release.
func Running() (Series, string) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err.Error()
	}
	release := unix.ByteSliceToString(name.Release[:])
	return SeriesOf(release), release
}

// SeriesOf finds the series of a release such as "6.1.0-56-cloud-amd64".
func SeriesOf(release string) Series {
	major, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	x, errX := strconv.Atoi(major)
	y, errY := strconv.Atoi(rest)
	if errX != nil || errY != nil {
		return ""
	}
	for _, s := range []Series{Linux6_1, Linux6_12} {
		if string(s) == fmt.Sprintf("%d.%d", x, y) {
			return s
		}
	}
	if x > 6 || x == 6 && y >= 18 {
		return Newest
	}
	return ""
}

// root tells whether probes can work at all.
func root() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	return nil
}
