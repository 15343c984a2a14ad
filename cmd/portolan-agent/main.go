// SPDX-License-Identifier: Apache-2.0

// Command portolan-agent keeps the BPF tables of this node in step with the
// Services of a cluster, or of a directory of manifests. It is wiring only:
// what it does is in pkg/agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"portolan.dev/portolan/pkg/agent"
	"portolan.dev/portolan/pkg/config"
	"portolan.dev/portolan/pkg/metrics"
	"portolan.dev/portolan/pkg/source/kube"
	"portolan.dev/portolan/pkg/source/manifest"
)

// version is set when a release is built.
var version = "devel"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "portolan-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var c config.Config
	cmd := &cobra.Command{
		Use:   "portolan-agent",
		Short: "Serve Kubernetes Services on this node from BPF tables",
		Example: `  # on a node of a cluster
  portolan-agent --kubeconfig /etc/kubernetes/portolan.conf
  # without a cluster
  portolan-agent --manifests ./services --node-name worker-1 --service-cidr 10.96.0.0/12`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.Validate(cmd.Flags()); err != nil {
				return err
			}
			return run(c)
		},
	}
	c.Flags(cmd.Flags())
	return cmd
}

func run(c config.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := logger(&c)
	recorder := metrics.NewRecorder()
	src, mode, err := newSource(&c, log, recorder)
	if err != nil {
		return err
	}
	// An API server takes Events; files do not.
	events, _ := src.(agent.EventSink)
	a, err := agent.New(agent.Config{Options: c, Source: src, Mode: mode, Version: version, Logger: log, Recorder: recorder, Events: events})
	if err != nil {
		return err
	}
	if err := a.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopping; tables and programs stay, and traffic goes on")
	return nil
}

func newSource(c *config.Config, log *slog.Logger, requests kube.Requests) (agent.Source, string, error) {
	if c.Manifests != "" {
		s, err := manifest.New(manifest.Config{Dir: c.Manifests, NodeName: c.NodeName, ProxyName: c.ServiceProxyName, ExternalIPs: c.ExternalIPs, Logger: log})
		return s, "manifests " + c.Manifests, err
	}
	mode := "in-cluster"
	if c.Kubeconfig != "" {
		mode = "kubeconfig " + c.Kubeconfig
	}
	remembered, err := agent.ReadAPIServers(c.StateDir)
	if err != nil {
		log.Warn("API servers are not remembered from before", "error", err)
	}
	kube.LogTo(log)
	s, err := kube.New(kube.Config{Kubeconfig: c.Kubeconfig, NodeName: c.NodeName, ProxyName: c.ServiceProxyName, ExternalIPs: c.ExternalIPs, Logger: log, Requests: requests, APIServers: remembered})
	return s, mode, err
}

func logger(c *config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if c.Verbosity > 0 {
		options.Level = slog.LevelDebug
	}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
