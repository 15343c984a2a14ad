// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/pkg/api"
)

// edition is what version prints as JSON.
type edition struct {
	api.Meta
	Version string `json:"version"`
}

func newVersion(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this command",
		Long:    "Print the version of this command. That of the agent is a part of `portolan status`.",
		Example: "  portolan version\n  portolan version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := edition{api.Meta{APIVersion: api.Version, Kind: "Version"}, version}
			if done, err := env.machine(v, []string{version}); done || err != nil {
				return err
			}
			_, err := fmt.Fprintln(env.out, "portolan", version)
			return err
		},
	}
}
