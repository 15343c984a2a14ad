// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Child is a process that a StartFunc has started and reaps.
type Child interface {
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Kill ends the process at once, as a crash would, and waits for it.
	Kill()
}

// StartFunc starts cmd where its traffic belongs, usually in a network
// namespace, and returns once the child runs.
type StartFunc func(cmd *exec.Cmd) (Child, error)

// process is one child with its log on disk.
type process struct {
	Child
	name string
	log  string
}

// startProcess runs binary with args and appends its output to NAME.log in dir.
func startProcess(start StartFunc, dir, name, binary string, args ...string) (*process, error) {
	logPath := filepath.Join(dir, name+".log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	child, err := start(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &process{Child: child, name: name, log: logPath}, nil
}

// kill ends the child at once; a nil process has ended already.
func (p *process) kill() {
	if p != nil {
		p.Kill()
	}
}

// tail returns the last lines of the child's log, for error messages.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	const keep = 15
	if len(lines) > keep {
		lines = lines[len(lines)-keep:]
	}
	return strings.Join(lines, "\n")
}
