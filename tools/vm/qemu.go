// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// How a guest can end badly.
var (
	errFailed  = errors.New("tests failed")
	errTimeout = errors.New("the guest took too long")
	errSilent  = errors.New("the guest ended without a verdict")
)

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFailed):
		return 1
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.Is(err, errSilent):
		return exitSilent
	default:
		return exitUnprepared
	}
}

// accelEnv chooses how QEMU runs the guest: "tcg", software emulation that
// works everywhere, or "kvm". That /dev/kvm exists does not mean that it works
// within another virtual machine, so nothing is guessed.
const accelEnv = "VM_ACCEL"

// kernelArgs: output to the console, end at once on a panic, no waiting for
// hardware that is not there, and no side-channel mitigations, which emulation
// makes slow and whose absence no test can see.
const kernelArgs = "console=ttyS0 panic=-1 reboot=t,force quiet loglevel=4 nokaslr mitigations=off random.trust_cpu=on " +
	"no_timer_check tsc=reliable rcupdate.rcu_expedited=1 rcupdate.rcu_cpu_stall_timeout=120 nowatchdog audit=0 cgroup_no_v1=all"

// guest is one virtual machine.
type guest struct {
	kernel string // directory with vmlinux
	dir    string // for its files
	out    held
}

func (g *guest) image() string             { return filepath.Join(g.dir, "initramfs") }
func (g *guest) console() string           { return filepath.Join(g.dir, "console") }
func (g *guest) socket(port string) string { return filepath.Join(g.dir, port) }

// args are QEMU's. One thread emulates both processors in turn: with a thread
// for each, QEMU before 8.1 may go on with an instruction that the kernel has
// replaced on another processor meanwhile, such as the breakpoint of a static
// key that was switched, and the guest dies of "int3"
// (https://bugzilla.redhat.com/show_bug.cgi?id=2216496).
func (g *guest) args(memory string) ([]string, error) {
	accel := []string{"-accel", "tcg,thread=single,tb-size=256", "-cpu", "Nehalem"}
	switch choice := os.Getenv(accelEnv); choice {
	case "", "tcg":
	case "kvm":
		accel = []string{"-accel", "kvm", "-cpu", "host"}
	default:
		return nil, fmt.Errorf("%s=%s: it is tcg or kvm", accelEnv, choice)
	}
	args := append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"}, accel...)
	args = append(args, "-smp", "2", "-m", memory,
		"-kernel", filepath.Join(g.kernel, "vmlinux"), "-initrd", g.image(), "-append", kernelArgs,
		"-chardev", "file,id=console,path="+g.console(), "-serial", "chardev:console",
		"-device", "virtio-serial-pci")
	for _, port := range []string{portOutput, portControl} {
		args = append(args, "-chardev", "socket,id="+port+",path="+g.socket(port),
			"-device", "virtserialport,chardev="+port+",name="+port)
	}
	return args, nil
}

// run boots, passes the tests' output on, and ends it with a summary. The error
// is nil only when the guest said that all is done and nothing failed.
func (g *guest) run(o options) error {
	output, err := net.Listen("unix", g.socket(portOutput))
	if err != nil {
		return err
	}
	defer output.Close()
	control, err := net.Listen("unix", g.socket(portControl))
	if err != nil {
		return err
	}
	defer control.Close()
	args, err := g.args(o.memory)
	if err != nil {
		return err
	}
	name, start := filepath.Base(g.kernel), time.Now()
	fmt.Fprintf(&g.out, "kernel %s\n", name)
	ctx, cancel := context.WithTimeout(context.Background(), o.limit+time.Minute)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var complaints strings.Builder
	qemu.Stderr = &complaints
	if err := qemu.Start(); err != nil {
		return fmt.Errorf("start QEMU: %w; install qemu-system-x86", err)
	}
	printed, told := make(chan *tally, 1), make(chan []record, 1)
	go func() { printed <- passOn(output, &g.out) }()
	go func() { told <- readRecords(control) }()
	exitErr := qemu.Wait()
	// Whoever still waits for QEMU to connect waits in vain.
	output.Close()
	control.Close()
	counts, records := <-printed, <-told
	err = judge(records, len(o.suites))
	if ctx.Err() != nil {
		err = errTimeout
	} else if exitErr != nil && errors.Is(err, errSilent) {
		err = fmt.Errorf("%w: QEMU: %w: %s", errSilent, exitErr, strings.TrimSpace(complaints.String()))
	}
	g.showConsole(o.console, err)
	if err == nil || errors.Is(err, errFailed) {
		fmt.Fprintf(&g.out, "kernel %s: %s in %.0f s\n", name, counts, time.Since(start).Seconds())
	}
	if err != nil {
		return fmt.Errorf("kernel %s: %w", name, err)
	}
	return nil
}

// held is a stream that waits for its turn to be shown.
type held struct {
	mu   sync.Mutex
	text bytes.Buffer
	to   io.Writer // nil before its turn
}

func (h *held) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.to == nil {
		return h.text.Write(p)
	}
	return h.to.Write(p)
}

// release shows what has been written, and from now on all that is.
func (h *held) release(to io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.to = to
	_, _ = h.text.WriteTo(to) // nobody could be told
}

// passOn copies what the tests print, and counts.
func passOn(l net.Listener, out io.Writer) *tally {
	counts := &tally{}
	conn, err := l.Accept()
	if err != nil {
		return counts
	}
	defer conn.Close()
	_, _ = io.Copy(io.MultiWriter(out, counts), conn) // it ends with the guest
	return counts
}

// readRecords collects what the guest tells until it ends.
func readRecords(l net.Listener) []record {
	conn, err := l.Accept()
	if err != nil {
		return nil
	}
	defer conn.Close()
	var all []record
	for in := json.NewDecoder(conn); ; {
		var r record
		if err := in.Decode(&r); err != nil {
			return all
		}
		all = append(all, r)
	}
}

// judge decides by what the guest told.
func judge(records []record, want int) error {
	done, packages := false, 0
	var failed []string
	for _, r := range records {
		done = done || r.Done
		if r.Done {
			continue
		}
		packages++
		if r.Failed != "" {
			failed = append(failed, r.Package)
		}
	}
	switch {
	case len(failed) > 0:
		return fmt.Errorf("%w: %s", errFailed, strings.Join(failed, ", "))
	case !done || packages != want:
		return fmt.Errorf("%w: %d of %d packages reported", errSilent, packages, want)
	}
	return nil
}

// consoleTail is how much of the kernel's log is shown when something failed.
const consoleTail = 6000

func (g *guest) showConsole(all bool, err error) {
	if err == nil && !all {
		return
	}
	text, readErr := os.ReadFile(g.console())
	if readErr != nil || len(text) == 0 {
		return
	}
	if !all && len(text) > consoleTail {
		text = text[len(text)-consoleTail:]
	}
	fmt.Fprintf(&g.out, "kernel log:\n%s\n", text)
}
