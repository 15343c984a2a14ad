// SPDX-License-Identifier: Apache-2.0

// Needs root; any kernel from 5.7.
package world_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

var errFew = errors.New("too few dials so far")

// traces lists what of world id is on the machine.
func traces(t *testing.T, id string) (found []string) {
	t.Helper()
	root := world.Must(world.CgroupMount())(t)
	for _, pattern := range []string{
		filepath.Join("/run/portolan-world", id),
		filepath.Join("/run/netns", id+"-*"),
		filepath.Join(root, id),
	} {
		found = append(found, world.Must(filepath.Glob(pattern))(t)...)
	}
	mounts := world.Must(os.ReadFile("/proc/self/mounts"))(t)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, id+"/") || strings.Contains(line, id+"-") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// populate makes a world with everything a world can have, busy processes
// included, and returns a process of it.
func populate(w *world.World) (*world.Probe, error) {
	node, err := w.AddNode("node")
	if err != nil {
		return nil, err
	}
	pod, err := node.AddPod("pod")
	if err != nil {
		return nil, err
	}
	if _, err := pod.Serve("pod", "tcp:80"); err != nil {
		return nil, err
	}
	host, err := w.AddHost("host")
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(node.BPFFS(), "pins"), 0o700); err != nil {
		return nil, err
	}
	probe, err := host.Probe()
	if err != nil {
		return nil, err
	}
	_, err = probe.Hammer("tcp", "192.168.100.1:80", world.HammerConfig{Workers: 2, Pause: time.Millisecond})
	return probe, err
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestCloseLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	world.RequireRoot(t)
	w := world.Must(world.New())(t)
	t.Cleanup(func() { _ = w.Close() })
	probe := world.Must(populate(w))(t)
	if len(traces(t, w.ID())) == 0 {
		t.Fatal("a living world has no traces: the test looks in the wrong places")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, w.ID()); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if alive(probe.PID()) {
		t.Errorf("process %d still lives", probe.PID())
	}
	if err := w.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := w.AddNode("late"); err == nil {
		t.Error("a closed world takes a node")
	}
}

// crasher is the environment variable that makes the test binary a process
// that builds a world and waits to be killed.
const crasher = "PORTOLAN_WORLD_TEST_CRASHER"

func crash() error {
	w, err := world.New()
	if err != nil {
		return err
	}
	probe, err := populate(w)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	fmt.Printf("made %s %d\n", w.ID(), probe.PID())
	select {}
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	world.RequireRoot(t)
	survivor := world.NewT(t)
	bystander := world.Must(populate(survivor))(t)

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crasher+"=1")
	out := world.Must(cmd.StdoutPipe())(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var id string
	var pid int
	for in := bufio.NewScanner(out); id == "" && in.Scan(); {
		_, _ = fmt.Sscanf(in.Text(), "made %s %d", &id, &pid)
	}
	if id == "" {
		t.Fatalf("the child made no world: %v", cmd.Wait())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed, and says so
	// The crash itself ends the processes; what remains is for the sweep.
	world.Eventually(t, func() error {
		if alive(pid) {
			return fmt.Errorf("process %d outlives the one that started it", pid)
		}
		return nil
	})
	if err := world.Sweep(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, id); len(left) > 0 {
		t.Errorf("left after the sweep: %q", left)
	}
	if len(traces(t, survivor.ID())) == 0 || !alive(bystander.PID()) {
		t.Error("the sweep took a world whose process lives")
	}
}

func TestWorldsDoNotTouchOneAnother(t *testing.T) {
	t.Parallel()
	one, two := world.NewT(t), world.NewT(t)
	probeOne, probeTwo := world.Must(populate(one))(t), world.Must(populate(two))(t)
	if one.ID() == two.ID() || one.Dir() == two.Dir() {
		t.Fatalf("two worlds share the name %s", one.ID())
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if alive(probeOne.PID()) || !alive(probeTwo.PID()) {
		t.Error("closing one world did not end just its own processes")
	}
	if len(traces(t, two.ID())) == 0 {
		t.Error("closing one world took the other's traces away")
	}
}

// Every new world sweeps, also while others are being closed.
func TestWorldsComeAndGoAtOnce(t *testing.T) {
	t.Parallel()
	world.RequireRoot(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 8 {
		wg.Go(func() {
			for range 10 {
				w, err := world.New()
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(w.Dir()); err != nil {
					t.Error(err)
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestProcessOutputIsKept(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	host := world.Must(node.Host("host"))(t)
	p := world.Must(host.Start("/bin/sh", "-c", "echo out; echo err >&2; exit 3"))(t)
	var exit *exec.ExitError
	if err := p.Wait(10 * time.Second); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("ended with %v, want exit code 3", err)
	}
	if got := p.Output(); got != "out\nerr\n" {
		t.Errorf("output %q, want both streams", got)
	}
	stubborn := world.Must(host.Start("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"))(t)
	world.Eventually(t, func() error {
		if stubborn.Output() == "" {
			return errors.New("the trap is not set yet")
		}
		return nil
	})
	if err := stubborn.Stop(50 * time.Millisecond); err == nil || alive(stubborn.PID()) {
		t.Errorf("stop of a process that ignores SIGTERM: %v, want an error and the process gone", err)
	}
}
