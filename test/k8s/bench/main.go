// SPDX-License-Identifier: Apache-2.0

// Command bench measures how fast a service dataplane follows a real API
// server: the time from a changed EndpointSlice to a connection that reaches
// the new endpoint, the time from the agent's start to the last of many
// Services, the agent's peak memory, and what a client outside pays for a
// NodePort. With --peer it measures kube-proxy in
// its nftables mode in the same run and the same way.
//
// Times are what a client sees: a process in a pod that connects over and over,
// so that no dataplane is asked about itself.
//
//	client pod (node of the dataplane) -> VIP -> backend pods (another node)
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"portolan.dev/portolan/test/k8s/cluster"
	"portolan.dev/portolan/test/world"
)

// config is the command line.
type config struct {
	services  int
	endpoints int
	flips     int
	starts    int
	peer      bool
	peerFlips int
	json      string
}

func main() {
	world.Main()
	var c config
	flag.IntVar(&c.services, "services", 10_000, "Services to load")
	flag.IntVar(&c.endpoints, "endpoints", 10, "endpoints of each Service")
	flag.IntVar(&c.flips, "flips", 100, "endpoint changes to measure")
	flag.IntVar(&c.starts, "starts", 3, "agent starts to measure; the median counts")
	flag.BoolVar(&c.peer, "peer", false, "measure kube-proxy, too (one start, takes minutes)")
	flag.IntVar(&c.peerFlips, "peer-flips", 10, "endpoint changes to measure with kube-proxy")
	flag.StringVar(&c.json, "json", "", "file with a JSON array to add the figures to")
	flag.Parse()
	if flag.NArg() > 0 || c.services < 1 || c.endpoints < 1 || c.flips < 1 || c.starts < 1 || c.peerFlips < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(c config) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	kcp, err := cluster.BuildControlPlane()
	if err != nil {
		return err
	}
	agent, err := cluster.BuildAgent()
	if err != nil {
		return err
	}
	cl, err := cluster.Start(ctx, cluster.Config{
		ControlPlane: kcp,
		Nodes:        []string{"portolan", "backends", "kube-proxy"},
		Log:          slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := cl.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}()
	b := &bench{config: c, cluster: cl, client: cl.Client}
	if err := b.load(ctx); err != nil {
		return err
	}
	ours, err := b.measure(ctx, cl.Nodes[0], cluster.Agent(agent),
		plan{starts: c.starts, flips: c.flips, settle: 50 * time.Millisecond})
	if err != nil {
		return err
	}
	var peer *figures
	if c.peer {
		// kube-proxy rests for a second after each sync.
		peer, err = b.measure(ctx, cl.Nodes[2], cluster.KubeProxy(kcp),
			plan{starts: 1, flips: c.peerFlips, settle: 1200 * time.Millisecond})
		if err != nil {
			return err
		}
	}
	return report(os.Stdout, c, ours, peer)
}
