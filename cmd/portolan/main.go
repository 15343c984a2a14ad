// SPDX-License-Identifier: Apache-2.0

// Command portolan shows operators what Portolan does on this node, from the
// agent's socket, or from the pinned tables when no agent runs. One file is one
// subcommand.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/api"
)

// version is set when a release is built.
var version = "devel"

// Exit codes, as diff(1) and kubectl diff have them.
const (
	exitFine    = 0
	exitFinding = 1 // a negative finding
	exitError   = 2 // usage or internal error
	exitNobody  = 3 // nothing to talk to
)

// errFinding ends a command that has printed a negative finding.
var errFinding = errors.New("negative finding")

// errNobody means that there is neither an agent nor pinned tables.
var errNobody = errors.New("nothing to talk to")

func main() {
	os.Exit(run(&environment{in: os.Stdin, out: os.Stdout, errOut: os.Stderr, now: time.Now}, os.Args[1:]))
}

// run is main without the process around it.
func run(env *environment, args []string) int {
	out, errOut := env.out, env.errOut
	root := newRoot(env)
	root.SetArgs(args)
	root.SetIn(env.in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.Execute()
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errFinding):
		return exitFinding
	case errors.Is(err, errNobody):
		fmt.Fprintln(errOut, "portolan:", err)
		return exitNobody
	}
	fmt.Fprintln(errOut, "portolan:", err)
	return exitError
}

// environment is what all subcommands share.
type environment struct {
	in          io.Reader
	out, errOut io.Writer
	now         func() time.Time
	bpffsRoot   string
	socket      string
	output      string
	noHeaders   bool
	color       string
	coloured    bool // what color comes to
	quiet       bool
	timeout     time.Duration
}

func newRoot(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:           "portolan",
		Short:         "See what Portolan does with this node's Services",
		Long:          "See what Portolan does with this node's Services.\n\nExit codes: 0 fine, 1 a negative finding, 2 usage or internal error, 3 nothing to talk to.",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			if err := checkOutput(env.output); err != nil {
				return err
			}
			env.coloured, err = wantsColour(env.color, env.output, env.out)
			return err
		},
		Example: `  portolan status
  portolan services
  portolan services default/web
  portolan verify
  source <(portolan completion bash)`,
	}
	f := root.PersistentFlags()
	f.StringVar(&env.bpffsRoot, "bpffs-root", "/sys/fs/bpf/portolan", "`DIR` of the pinned tables")
	f.StringVar(&env.socket, "socket", "/run/portolan/agent.sock", "unix socket `PATH` of the agent")
	f.StringVarP(&env.output, "output", "o", "table", "table, wide, json, yaml, name or jsonpath=`EXPR`")
	f.BoolVar(&env.noHeaders, "no-headers", false, "tables without a header line")
	f.StringVar(&env.color, "color", "auto", "`WHEN` to colour tables: auto (at a terminal, unless NO_COLOR is set), always or never")
	f.BoolVarP(&env.quiet, "quiet", "q", false, "no notes on standard error")
	f.DurationVar(&env.timeout, "timeout", 5*time.Second, "wait this long for the agent")
	root.AddCommand(newStatus(env), newServices(env), newDump(env), newVerify(env), newCheck(env), newCleanup(env), newVersion(env))
	return root
}

func (e *environment) client() *api.Client { return api.NewClient(e.socket, e.timeout) }

// note tells people something beside the output.
func (e *environment) note(format string, args ...any) {
	if !e.quiet {
		fmt.Fprintf(e.errOut, format+"\n", args...)
	}
}

// tables opens the pinned tables for reading.
func (e *environment) tables() (*maps.Set, error) {
	set, err := maps.OpenPinned(loader.TableDir(e.bpffsRoot), false)
	if errors.Is(err, maps.ErrNotPinned) {
		return nil, fmt.Errorf("%w: no tables are pinned in --bpffs-root %s; start portolan-agent, or name the --bpffs-root and --socket that it has", errNobody, e.bpffsRoot)
	}
	return set, err
}

// resolved reads the pinned tables whole.
func (e *environment) resolved() (*maps.Resolved, error) {
	set, err := e.tables()
	if err != nil {
		return nil, err
	}
	defer set.Close()
	return set.Resolve()
}
