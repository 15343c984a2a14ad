// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Process is a running or ended program. Its methods may be called
// concurrently.
type Process struct {
	cmd   *exec.Cmd
	place *Place
	label string // "PROGRAM in PLACE"
	out   buffer
	done  chan struct{} // closed once err is set
	err   error
}

func newProcess(place string, cmd *exec.Cmd) *Process {
	p := &Process{
		cmd:   cmd,
		label: filepath.Base(cmd.Args[0]) + " in " + place,
		done:  make(chan struct{}),
	}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.out
	}
	// A grandchild that keeps the output open must not hold up the end.
	cmd.WaitDelay = time.Second
	return p
}

func (p *Process) reap() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is what the process has written so far to stdout and stderr.
func (p *Process) Output() string { return p.out.String() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends sig. It returns os.ErrProcessDone for a process that has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// Wait waits for the end of the process, at most for limit (scaled as
// Eventually does), and returns an *exec.ExitError if it did not exit with 0.
func (p *Process) Wait(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(Scaled(limit)):
		return fmt.Errorf("wait for %s: still running after %v", p.label, Scaled(limit))
	}
}

// Stop asks the process to end with SIGTERM and waits; one that takes longer
// than limit is killed, which is an error. The exit code is not looked at.
func (p *Process) Stop(limit time.Duration) error {
	_ = p.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.done:
		return nil
	case <-time.After(Scaled(limit)):
		p.Kill()
		return fmt.Errorf("stop %s: still running %v after SIGTERM, killed", p.label, Scaled(limit))
	}
}

// buffer is a bytes.Buffer for a writer and readers at the same time.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
