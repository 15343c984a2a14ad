// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// boot is the guest's first process: it prepares the machine, has a child run
// the tests, reaps whom the tests leave behind, and switches off. It never
// returns.
func boot() {
	if err := bootErr(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err) // to the console
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // QEMU ends instead
	select {}
}

func bootErr() error {
	if err := mountAll(); err != nil {
		return err
	}
	j, err := readJob()
	if err != nil {
		return err
	}
	for _, name := range []string{"virtio_pci", "virtio_console"} {
		if err := j.Modules.load(name); err != nil {
			return err
		}
	}
	for _, resource := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_MEMLOCK} {
		limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
		if resource == unix.RLIMIT_MEMLOCK {
			limit = unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		}
		if err := unix.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("raise limit %d: %w", resource, err)
		}
	}
	child := exec.Command("/proc/self/exe", guestCommand)
	child.Env = append(os.Environ(), j.Env...)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		return err
	}
	for {
		// Orphans come to the first process; tests look whether they are gone.
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == child.Process.Pid || errors.Is(err, unix.ECHILD) {
			return nil
		}
	}
}

// mountAll mounts what a machine has mounted.
func mountAll() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", ""},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/tmp", ""},
		{"tmpfs", "/run", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"bpf", "/sys/fs/bpf", ""},
		{"tracefs", "/sys/kernel/tracing", ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	// As udev does: opening it loads the module.
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return fmt.Errorf("make /dev/net/tun: %w", err)
	}
	// As systemd does: bind mounts of namespaces rely on it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return os.Chmod("/tmp", 0o1777)
}

func readJob() (*job, error) {
	text, err := os.ReadFile(jobFile)
	if err != nil {
		return nil, err
	}
	j := &job{}
	return j, json.Unmarshal(text, j)
}

// openPort opens a channel to the host by its name. Ports appear when the
// driver has found them.
func openPort(name string) (*os.File, error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, file := range names {
			if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_WRONLY, 0)
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("open port %s: it does not appear", name)
		}
	}
}

// runSuites runs every package's tests and reports to the host.
func runSuites() int {
	if err := runSuitesErr(); err != nil {
		fmt.Fprintln(os.Stderr, "run suites:", err)
		return 1
	}
	return 0
}

func runSuitesErr() error {
	j, err := readJob()
	if err != nil {
		return err
	}
	control, err := openPort(portControl)
	if err != nil {
		return err
	}
	output, err := openPort(portOutput)
	if err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	report := json.NewEncoder(control)
	for _, s := range j.Suites {
		r := runSuite(s, slices.Concat(j.Args, s.Args), output)
		if err := report.Encode(r); err != nil {
			return err
		}
	}
	return report.Encode(record{Done: true})
}

func runSuite(s suite, args []string, output *os.File) record {
	start := time.Now()
	cmd := exec.Command("./"+testBinary, args...)
	cmd.Dir = guestDir(s.Package)
	cmd.Stdout, cmd.Stderr = output, output
	err := cmd.Run()
	r := record{Package: s.Package, Seconds: time.Since(start).Seconds()}
	verdict := "ok  "
	if err != nil {
		r.Failed, verdict = err.Error(), "FAIL"
	}
	// As `go test` does, in the same stream as the tests' own lines.
	fmt.Fprintf(output, "%s\t%s\t%.2fs\t%s\n", verdict, s.Package, r.Seconds, r.Failed)
	return r
}

// loopbackUp sets the interface lo up, as a machine's boot does.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
