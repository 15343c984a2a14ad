// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/api"
)

// removal is what cleanup did, or would do.
type removal struct {
	api.Meta
	DryRun  bool     `json:"dryRun"`
	Removed []string `json:"removed"`
}

func newCleanup(env *environment) *cobra.Command {
	var dryRun, agreed bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Detach every program and remove every table",
		Long: "Detach every program and remove every table of --bpffs-root: Services are not translated any more.\n" +
			"Stop the agent first; while it runs, nothing is removed and the exit code is 1.",
		Example: `  portolan cleanup --dry-run
  portolan cleanup              # asks at a terminal
  portolan cleanup --yes`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if !dryRun && !agreed {
				if !isTerminal(env.in) {
					return errors.New("nothing was removed: there is no terminal to ask at; say --yes, or --dry-run to see what would go")
				}
				if !env.confirmed() {
					env.note("nothing was removed")
					return errFinding
				}
			}
			return cleanup(env, dryRun)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	cmd.Flags().BoolVarP(&agreed, "yes", "y", false, "do not ask")
	return cmd
}

func (e *environment) confirmed() bool {
	fmt.Fprintf(e.errOut, "Remove all programs and tables of %s? Services stop working for new connections. [y/N] ", e.bpffsRoot)
	var answer string
	// No answer is a no.
	_, _ = fmt.Fscanln(e.in, &answer)
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
}

func cleanup(env *environment, dryRun bool) error {
	paths, err := loader.Cleanup(env.bpffsRoot, dryRun)
	if errors.Is(err, loader.ErrInUse) {
		fmt.Fprintf(env.errOut, "portolan: nothing was removed: an agent runs on --bpffs-root %s; stop the agent first\n", env.bpffsRoot)
		return errFinding
	}
	restored, restoreErr := loader.RestoreReservedPorts(env.socket, dryRun)
	paths, err = append(paths, restored...), errors.Join(err, restoreErr)
	// What is gone is told even when the rest could not be removed.
	return errors.Join(err, printRemoval(env, paths, dryRun))
}

func printRemoval(env *environment, paths []string, dryRun bool) error {
	r := removal{Meta: api.Meta{APIVersion: api.Version, Kind: "Cleanup"}, DryRun: dryRun, Removed: append([]string{}, paths...)}
	if done, err := env.machine(r, paths); done || err != nil {
		return err
	}
	word := "removed"
	if dryRun {
		word = "would remove"
	}
	for _, path := range paths {
		fmt.Fprintln(env.out, word, path)
	}
	if len(paths) == 0 {
		env.note("there is nothing to remove in %s", env.bpffsRoot)
	}
	return nil
}
