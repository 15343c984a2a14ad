// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

// Place is where processes run: a namespace and a cgroup. A Pod is one;
// Node.Host makes others.
type Place struct {
	*Namespace
	world  *World
	name   string
	cgroup string
}

// newPlace makes a cgroup for processes in ns. The caller holds w.mu.
func (w *World) newPlace(ns *Namespace, name, cgroup string) (*Place, error) {
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return &Place{Namespace: ns, world: w, name: name, cgroup: cgroup}, nil
}

// Cgroup is the directory of the place's cgroup.
func (p *Place) Cgroup() string { return p.cgroup }

// Start runs a program in the place. Its output is kept; it is killed when the
// world is closed or its process dies.
func (p *Place) Start(name string, args ...string) (*Process, error) {
	return p.StartCmd(exec.Command(name, args...))
}

// StartCmd is Start for a command with an environment, a directory or files of
// its own. Stdout and Stderr are kept unless they are set. A command with
// Stdin is taken to be interactive and stays in the caller's process group,
// where the terminal's keys reach it.
func (p *Place) StartCmd(cmd *exec.Cmd) (*Process, error) {
	if err := p.world.guard(); err != nil {
		return nil, err
	}
	defer p.world.mu.Unlock()
	dir, err := os.Open(p.cgroup)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true,
		CgroupFD:    int(dir.Fd()),
		Pdeathsig:   syscall.SIGKILL,
		Setpgid:     cmd.Stdin == nil,
	}
	proc := newProcess(p.name, cmd)
	err = p.world.onSpawner(func() error { return p.Do(cmd.Start) })
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	proc.place = p
	p.world.processes = append(p.world.processes, proc)
	go proc.reap()
	return proc, nil
}

// remove kills the place's processes and removes its cgroup.
func (p *Place) remove() error {
	w := p.world
	w.mu.Lock()
	var mine []*Process
	w.processes = slices.DeleteFunc(w.processes, func(q *Process) bool {
		if q.place != p {
			return false
		}
		mine = append(mine, q)
		return true
	})
	w.mu.Unlock()
	for _, q := range mine {
		q.Kill()
	}
	return removeCgroup(p.cgroup)
}
