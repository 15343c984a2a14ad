// SPDX-License-Identifier: Apache-2.0

// Package world builds small Kubernetes-shaped networks out of Linux network
// namespaces: nodes with an uplink, a bridge for their pods, a cgroup and a
// bpffs of their own; pods; and processes living in them. Privileged tests,
// benchmarks and the demo run on it. It needs root and nothing else: no ip
// command, no kernel module, no container runtime.
//
// It imports netlink, x/sys and the standard library, and nothing of the
// project: a test's world must not depend on what the test checks.
//
// The invariants it guards: worlds do not touch one another, so any number may
// exist at once, in one process or in several; what a world makes is gone
// after Close; and what a crashed process left is recognised by the lock it no
// longer holds and removed by the next New or Sweep.
//
// Address plan, the same in every world:
//
//	node n (1, 2, …)   eth0  192.168.100.n/24   fd00:192:168:100::n/64
//	gateway            the switch, 192.168.100.254 and ::fe; drops what is sent to it
//	pods of node n     eth0  10.244.n.2…/24     fd00:10:244:n::2…/64
//	their gateway      cni0  10.244.n.1         fd00:10:244:n::1
//	hosts              eth0  192.168.100.101…   fd00:192:168:100::65…
//
// A program that uses the package calls Main first thing in main or TestMain,
// because probes are the same executable started again.
package world

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"portolan.dev/portolan/test/world/internal/probe"
)

// Main turns the process into a probe when it was started as one, and then
// never returns. Otherwise it does nothing.
func Main() {
	if os.Getenv(probe.EnvVar) == "" {
		return
	}
	if err := probe.Main(); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// World owns everything that is made through it. Its methods may be called
// concurrently.
type World struct {
	id      string // unique on the machine, "ptl-PID-N"
	dir     string // files, sockets and mounts of this world
	cgroups string // this world's cgroup2 directory
	lock    *os.File
	spawn   chan func() // to the thread that starts processes; see spawner

	closeOnce sync.Once
	closeErr  error // set by closeOnce

	mu         sync.Mutex // guards the rest, and serialises changes of the network
	closed     bool
	fabric     *Namespace // the switch between nodes
	nodes      []*Node
	hosts      int
	processes  []*Process
	namespaces []*Namespace
}

// New makes an empty world, after sweeping what crashed worlds have left.
func New() (*World, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make world: not root: run as root")
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	id, dir, lock, err := claim()
	if err != nil {
		return nil, fmt.Errorf("make world: %w", err)
	}
	w := &World{id: id, dir: dir, lock: lock, spawn: make(chan func())}
	go w.spawner()
	if err := w.setUp(); err != nil {
		return nil, fmt.Errorf("make world: %w", errors.Join(err, w.Close()))
	}
	return w, nil
}

func (w *World) setUp() error {
	root, err := CgroupMount()
	if err != nil {
		return err
	}
	w.cgroups = filepath.Join(root, w.id)
	if err := os.Mkdir(w.cgroups, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return w.buildFabric()
}

// spawner starts all processes of the world from one thread that lives as long
// as the world. Children ask the kernel to be killed when their parent dies,
// and the kernel takes the parent to be the thread that forked them: started
// from a thread that the runtime happens to retire, they would die with it.
func (w *World) spawner() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for f := range w.spawn {
		f()
	}
}

// onSpawner runs f on the spawner's thread.
func (w *World) onSpawner(f func() error) error {
	result := make(chan error, 1)
	w.spawn <- func() { result <- f() }
	return <-result
}

// ID is the world's name, unique on the machine; the names of its cgroup and
// of its namespaces begin with it.
func (w *World) ID() string { return w.id }

// Dir is a directory for files of the world, removed by Close. It is short
// enough for unix socket paths.
func (w *World) Dir() string { return w.dir }

// Close kills the world's processes and removes its namespaces, links,
// cgroups, mounts and files. Closing again waits for the first and returns the
// same.
func (w *World) Close() error {
	w.closeOnce.Do(func() { w.closeErr = w.close() })
	return w.closeErr
}

func (w *World) close() error {
	w.mu.Lock()
	w.closed = true
	processes, namespaces := w.processes, w.namespaces
	w.mu.Unlock()

	var errs []error
	for _, p := range processes {
		p.Kill()
	}
	close(w.spawn)
	for _, ns := range namespaces {
		errs = append(errs, ns.remove())
	}
	errs = append(errs, erase(w.id))
	errs = append(errs, w.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close world %s: %w", w.id, err)
	}
	return nil
}

// guard takes the lock for a change of the world, or says that it is too late.
// The caller unlocks w.mu when the error is nil.
func (w *World) guard() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return errors.New("world is closed")
	}
	return nil
}
