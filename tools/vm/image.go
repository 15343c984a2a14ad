// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Names within the guest.
const (
	guestCommand = "run-suites" // the argument that makes /init run tests
	jobFile      = "/job.json"
	moduleDir    = "/modules"
	testBinary   = "run.test"

	portOutput  = "output"  // what the tests print
	portControl = "control" // records, one JSON object each
)

// guestDir is where a package's tests run.
func guestDir(pkg string) string { return "/suites/" + pkg }

// job tells the guest what to do.
type job struct {
	Modules moduleTable
	Suites  []suite
	Args    []string // of every test binary
	Env     []string
}

// record is what the guest tells the host besides the tests' output: the
// verdict on one package, or at the end, with Done, on all.
type record struct {
	Package string  `json:",omitempty"`
	Failed  string  `json:",omitempty"` // how it ended; empty means well
	Seconds float64 `json:",omitempty"`
	Done    bool    `json:",omitempty"`
}

// buildImage writes the guest's file system.
func buildImage(path, kernel string, all []suite, o options) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	files, err := findModules(filepath.Join(kernel, "lib", "modules"))
	if err != nil {
		return err
	}
	contents := map[string]string{} // of module files, unpacked once
	table, err := closure(wantedModules, files, func(file string) (*module, error) {
		data, err := readModule(file)
		if err != nil {
			return nil, err
		}
		contents[file] = string(data)
		return modinfo(data)
	})
	if err != nil {
		return err
	}
	c := newCpio(out)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := c.addFile("/init", self, 0o755); err != nil {
		return err
	}
	c.addLink("/sbin/modprobe", "/init")
	c.addDevice("/dev/console", 5, 1)
	for _, dir := range []string{"/proc", "/sys", "/tmp", "/run", "/root", "/etc", "/var/tmp"} {
		c.addDir(dir)
	}
	c.addLink("/var/run", "/run")
	c.addBytes("/etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644)
	for name, m := range table {
		c.addBytes(moduleDir+"/"+name+".ko", contents[m.file], 0o644)
	}
	if err := addTools(c, guestTools); err != nil {
		return err
	}
	if err := addSuites(c, o.root, all); err != nil {
		return err
	}
	j := job{Modules: table, Suites: all, Args: testArgs(o), Env: []string{timeScaleEnv + "=" + timeScale}}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	c.addBytes(jobFile, string(text), 0o644)
	return c.close()
}

func testArgs(o options) []string {
	args := []string{"-test.v", "-test.timeout=" + o.limit.String()}
	if o.pattern != "" {
		args = append(args, "-test.run="+o.pattern)
	}
	return args
}
