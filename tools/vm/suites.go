// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suite is one package as the guest runs it.
type suite struct {
	Package string   // directory below the repository
	Args    []string `json:",omitempty"` // of its test binary, besides those of all
	binary  string   // on the host
}

// suites are the packages whose tests need root or depend on the kernel. They
// run in this order in one boot: the cheap ones, which name a cause, first.
var suites = []suite{
	{Package: "test/kernel", Args: []string{"-test.skip=IsAskedFor"}}, // the guest has no sources
	{Package: "maps", Args: []string{"-test.skip=TheDocument"}},       // the guest has no documents
	{Package: "loader"},
	{Package: "pkg/node"},
	// Its property tests draw histories of objects; which kernel holds the
	// tables matters little to them, and each map costs much under emulation.
	{Package: "pkg/reconcile", Args: []string{"-rapid.checks=10"}},
	{Package: "test/model", Args: []string{"-test.short", "-packets=5000"}},
	{Package: "cmd/portolan"},
	{Package: "test/world"},
	{Package: "test/e2e"},
	// An agent takes half a minute to start there: the tests of what it has the
	// kernel do, and not those of what it makes of the answers.
	{Package: "cmd/portolan-agent", Args: []string{"-test.skip=LoadBalancers|HealthCheck|Busy|Healthz|CutOff|Metrics|Configuration|LosesAHook|OnItsNodePort"}},
	// The guest has no nginx.
	{Package: "test/wire", Args: []string{"-test.short", "-test.skip=Nginx"}},
}

// choose finds the suites of the given packages, or all for none.
func choose(packages []string) []suite {
	if len(packages) == 0 {
		return suites
	}
	var chosen []suite
	for _, p := range packages {
		s := suite{Package: filepath.ToSlash(filepath.Clean(p))}
		for _, known := range suites {
			if known.Package == s.Package {
				s = known
			}
		}
		chosen = append(chosen, s)
	}
	return chosen
}

// timeScale multiplies the deadlines of the tests' own waiting; software
// emulation on a busy machine is that much slower.
const (
	timeScaleEnv = "PORTOLAN_TIME_SCALE"
	timeScale    = "10"
)

// compile makes a static test binary of every package: the guest has no C
// library.
func compile(root, dir string, all []suite) ([]suite, error) {
	var out []suite
	for i, s := range all {
		s.binary = filepath.Join(dir, fmt.Sprintf("%d.test", i))
		cmd := exec.Command("go", "test", "-c", "-o", s.binary, "./"+s.Package)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64", "GOAMD64=v1")
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("compile tests of %s: %w: %s", s.Package, err, strings.TrimSpace(string(text)))
		}
		if _, err := os.Stat(s.binary); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("compile tests of %s: the package has none", s.Package)
		}
		out = append(out, s)
	}
	return out, nil
}

// addSuites puts the binaries and their testdata where the guest looks.
func addSuites(c *cpio, root string, all []suite) error {
	for _, s := range all {
		if err := c.addFile(guestDir(s.Package)+"/"+testBinary, s.binary, 0o755); err != nil {
			return err
		}
		data := filepath.Join(root, s.Package, "testdata")
		err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			below, err := filepath.Rel(data, path)
			if err != nil {
				return err
			}
			return c.addFile(guestDir(s.Package)+"/testdata/"+filepath.ToSlash(below), path, 0o644)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
