// SPDX-License-Identifier: Apache-2.0

// Command demo shows Portolan at work on one screen: a node and its pods made
// of network namespaces, Kubernetes objects in a directory, an agent, and real
// requests. Every line it prints is a claim that it has just checked; it exits
// with 1 when one did not hold.
//
// It imports test/world and the standard library, and runs the two binaries as
// an operator would. The invariant it guards: whatever happens, an interrupt
// included, nothing of it stays on the machine.
//
// With KEEP=1 in the environment it ends in a shell on the node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"portolan.dev/portolan/test/world"
)

func main() {
	world.Main()
	agent := flag.String("agent", "bin/portolan-agent", "the agent's binary")
	cli := flag.String("cli", "bin/portolan", "the operator's command")
	flag.Parse()
	os.Exit(run(*agent, *cli))
}

// run returns the exit code: 0 if all claims hold, 1 if one does not or the
// demo could not go on, 130 if it was interrupted.
func run(agent, cli string) int {
	began := time.Now()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	d := &demo{screen: newScreen(os.Stdout), agentPath: agent, cliPath: cli}
	err := d.checkBinaries()
	if err == nil {
		d.world, err = world.New()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.ctx = ctx
	go d.closeOnSignal(signals, cancel)

	err = d.play()
	logs := d.agentLogs()
	interrupted := ctx.Err() != nil
	closeErr := d.world.Close()
	switch {
	case interrupted && closeErr == nil:
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; everything it made is removed")
		return 130
	case err != nil || closeErr != nil:
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n%s", errors.Join(err, closeErr), logs)
		return 1
	case len(d.broken) > 0:
		fmt.Fprintf(os.Stderr, "\ndemo: %d of %d claims did not hold:\n  %s\n%s", len(d.broken),
			d.claims, strings.Join(d.broken, "\n  "), logs)
		return 1
	}
	d.end("All %d claims hold: %d requests while things changed, none failed. %.1f s; nothing is left behind.",
		d.claims, d.hammered, time.Since(began).Seconds())
	return 0
}

// closeOnSignal closes the world as soon as the user wants to leave: whatever
// the demo is waiting for then fails at once.
func (d *demo) closeOnSignal(signals <-chan os.Signal, cancel func()) {
	for sig := range signals {
		if sig == syscall.SIGINT && d.inShell.Load() {
			continue // it means the command that runs in the shell
		}
		cancel()
		_ = d.world.Close() // run closes too, and tells the error
		return
	}
}

// checkBinaries makes both paths absolute, so that they hold in every place.
func (d *demo) checkBinaries() error {
	for _, path := range []*string{&d.agentPath, &d.cliPath} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("find binaries: %w: build them with make build", err)
		}
		*path = abs
	}
	return nil
}
