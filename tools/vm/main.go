// SPDX-License-Identifier: Apache-2.0

// Command vm runs the privileged test suites on other kernels: it fetches them
// from Debian, boots each in QEMU, side by side, and runs the compiled test
// binaries there.
//
//	vm -kernel 6.1[,6.12] [-run REGEXP] [-console] [PACKAGE-DIRECTORY ...]
//
// One executable has three parts: what runs on the host, the guest's /init, and
// the guest's /sbin/modprobe. It imports the standard library and x/sys. The
// invariant it guards: it ends with 0 only when every suite has run to its end
// and reported that it passed; silence is a failure.
//
// Exit codes: 0 all passed, 1 a suite failed, 2 the run could not be prepared,
// 124 it took too long, 125 the guest ended without a word (a kernel panic).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	switch {
	case os.Getpid() == 1:
		boot()
	case filepath.Base(os.Args[0]) == "modprobe":
		os.Exit(modprobe(os.Args[1:]))
	case len(os.Args) > 1 && os.Args[1] == guestCommand:
		os.Exit(runSuites())
	}
	var o options
	series := flag.String("kernel", "", "kernel series, with commas: "+strings.Join(seriesNames(), ", "))
	flag.StringVar(&o.root, "C", ".", "directory of the repository")
	flag.StringVar(&o.pattern, "run", "", "run only tests that match this expression")
	flag.StringVar(&o.memory, "memory", "3072", "MiB of the guest")
	flag.DurationVar(&o.limit, "timeout", 45*time.Minute, "how long the guest may run")
	flag.BoolVar(&o.console, "console", false, "show the kernel's log in full")
	flag.Parse()
	o.series, o.suites = strings.Split(*series, ","), choose(flag.Args())
	code, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	os.Exit(code)
}

// options of one run.
type options struct {
	series  []string
	root    string
	pattern string
	memory  string // MiB
	limit   time.Duration
	console bool
	suites  []suite
}

// Exit codes besides 0 and 1.
const (
	exitUnprepared = 2
	exitTimeout    = 124
	exitSilent     = 125
)

// run does everything between the command line and the exit code.
func run(o options) (int, error) {
	var kernels []string
	for _, series := range o.series {
		kernel, err := fetch(series)
		if err != nil {
			return exitUnprepared, err
		}
		kernels = append(kernels, kernel)
	}
	dir, err := os.MkdirTemp("", "portolan-vm-")
	if err != nil {
		return exitUnprepared, err
	}
	defer os.RemoveAll(dir)
	binaries, err := compile(o.root, dir, o.suites)
	if err != nil {
		return exitUnprepared, err
	}
	var guests []*guest
	for i, kernel := range kernels {
		g := &guest{kernel: kernel, dir: filepath.Join(dir, strconv.Itoa(i))}
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			return exitUnprepared, err
		}
		if err := buildImage(g.image(), kernel, binaries, o); err != nil {
			return exitUnprepared, fmt.Errorf("build initramfs: %w", err)
		}
		guests = append(guests, g)
	}
	err = bootAll(guests, o)
	return exitCode(err), err
}

// bootAll runs the guests side by side: an emulated one takes one processor.
// What the second says is shown when the first has ended, and so on.
func bootAll(guests []*guest, o options) error {
	results := make([]chan error, len(guests))
	for i, g := range guests {
		results[i] = make(chan error, 1)
		go func() { results[i] <- g.run(o) }()
	}
	var errs []error
	for i, g := range guests {
		g.out.release(os.Stdout)
		errs = append(errs, <-results[i])
	}
	return errors.Join(errs...)
}
