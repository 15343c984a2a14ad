// SPDX-License-Identifier: Apache-2.0

// Package agent is the loop that keeps the tables true: it takes batches of
// changed objects from a source, has them compiled and written, and tells
// operators what it did and what it could not do.
//
// It wires pkg/source, pkg/compile, pkg/reconcile, pkg/node and the loader;
// decisions are theirs. The invariant it guards: nothing is written before
// Services, slices, Node and addresses have all been seen once.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/config"
	"portolan.dev/portolan/pkg/health"
	"portolan.dev/portolan/pkg/metrics"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// Source brings objects into the queue until its context ends.
type Source interface {
	Run(ctx context.Context, q *source.Queue) error
}

// Config is what an agent is made of.
type Config struct {
	Options config.Config
	Source  Source
	Mode    string // "kubeconfig", "in-cluster" or "manifests", to be shown
	Version string
	Logger  *slog.Logger
	// Recorder takes note of times; the source may use it, too. It is required.
	Recorder *metrics.Recorder
	// Events is nil where there is nobody to post Events to.
	Events EventSink
}

// Agent is one dataplane's agent.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	queue   *source.Queue

	loader     *loader.Loader
	barrier    *maps.Barrier
	reconciler *reconcile.Reconciler

	// mu guards what the loop writes and the API reads.
	mu          sync.Mutex
	compiler    *compile.Compiler
	node        service.Node
	facts       node.Facts
	links       []node.Link
	read        func() (node.Facts, []node.Link, error) // of this node; readFacts but in tests
	xdpTargets  map[int]bool                            // links by index, that XDP programs may redirect to
	devices     []loader.DeviceStatus
	flows       uint32 // entries of the flow tables at the last sweep
	cidrs       []netip.Prefix
	seen        bool // everything was seen, and compiled, once
	synced      bool // and programs of this agent serve it
	unfinished  unfinished
	problems    problems
	programming latencies
	changes     uint64
	missing     []string // optional features of the kernel, and what that means
	keeper      *keeper
	apiServers  []netip.AddrPort
	checks      *health.Checks
	proxy       *health.Proxy
	recorder    *metrics.Recorder

	nodeChanged       chan struct{}
	sweep             chan struct{}
	checksChanged     chan struct{}
	nodePorts         *nodePorts
	apiServersChanged chan struct{}
	diary             diary
	toldUnclosed      bool // for closeStale alone
}

// retryAfter is how long a service port that could not be written waits.
const retryAfter = time.Second

// New checks the machine and adopts what an earlier agent left. Nothing is
// changed yet.
func New(cfg Config) (*Agent, error) {
	l, err := loader.Open(loader.Config{
		BPFFSRoot: cfg.Options.BPFFSRoot, CgroupRoot: cfg.Options.CgroupRoot, XDP: loader.XDPMode(cfg.Options.XDP),
		MasqueradeAll: cfg.Options.MasqueradeAll, PodDevices: len(cfg.Options.PodDevices) > 0,
	})
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, started: time.Now(), queue: source.NewQueue(), loader: l,
		node:        withPrimary(service.Node{Name: cfg.Options.NodeName}, cfg.Options.NodeIP),
		problems:    newProblems(cfg.Logger, newTeller(cfg.Events, cfg.Logger)),
		nodeChanged: make(chan struct{}, 1),
		sweep:       make(chan struct{}, 1),
		diary:       diary{log: cfg.Logger},
		checks:      health.NewChecks(), checksChanged: make(chan struct{}, 1),
		keeper: newKeeper(), apiServersChanged: make(chan struct{}, 1),
		recorder: cfg.Recorder, nodePorts: newNodePorts(), read: readFacts,
	}
	for _, f := range loader.Features() {
		if !f.Required && f.Probe() != nil {
			a.missing = append(a.missing, fmt.Sprintf("%s (Linux %s): %s", f.Name, f.Since, f.Without))
		}
	}
	a.compiler = compile.New(compile.Config{
		Node: a.node, MaxEndpoints: cfg.Options.MaxEndpoints,
		Algorithm: cfg.Options.Spread, Forwarding: cfg.Options.Forwarding, MaglevSize: cfg.Options.MaglevTableSize,
	})
	if err := a.prepare(); err != nil {
		l.Close()
		return nil, err
	}
	return a, nil
}

func (a *Agent) prepare() error {
	adopted, err := a.loader.Adopt()
	switch {
	case errors.Is(err, maps.ErrNotPinned):
		a.log.Info("no tables found, starting anew", "bpffs-root", a.cfg.Options.BPFFSRoot)
	case err != nil:
		return err
	default:
		a.log.Info("adopting the tables of an earlier agent", "bpffs-root", a.cfg.Options.BPFFSRoot)
	}
	a.proxy = health.NewProxy(adopted != nil && allAttached(a.cfg.Options.BPFFSRoot))
	if a.barrier, err = maps.NewBarrier(); err != nil {
		return err
	}
	a.reconciler, err = reconcile.New(reconcile.Config{
		Attach: a.loader.Attach, Adopted: adopted, Wait: a.barrier.Wait,
		ExternalClusterIP: a.cfg.Options.ExternalClusterIP,
	})
	return err
}

// Run keeps the tables true until ctx ends. What is in the kernel then stays.
func (a *Agent) Run(ctx context.Context) error {
	defer a.barrier.Close()
	defer a.loader.Close()
	a.tellOptions()
	a.tuneHost()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	updates := make(chan source.Update)
	failed := make(chan error, 10)
	var running sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		running.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	start("watch this node", func(ctx context.Context) error { return node.Watch(ctx, a.noticeNode) })
	a.problems.set("masquerade ports", errorProblem(a.reservePorts()))
	start("source", func(ctx context.Context) error { return a.cfg.Source.Run(ctx, a.queue) })
	start("take updates", func(ctx context.Context) error { return a.take(ctx, updates) })
	start("recycle", a.reconciler.Recycle)
	start("close stale sockets", a.closeStale)
	start("sweep flows", a.sweepFlows)
	start("health checks", a.answerChecks)
	start("watch holders of NodePorts", a.watchHolders)
	start("test dataplane", a.testDataplane)
	start("remember API servers", a.rememberAPIServers)
	start("tell events", a.problems.teller.run)
	start("api", a.serve)
	err := a.loop(ctx, updates, failed)
	stop()
	running.Wait()
	return err
}

func (a *Agent) take(ctx context.Context, updates chan<- source.Update) error {
	for {
		u, err := a.queue.Take(ctx)
		if err != nil {
			return err
		}
		a.proxy.Queue(time.Now())
		a.recorder.Queued(len(u.Services), len(u.Slices), time.Now())
		select {
		case updates <- u:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *Agent) loop(ctx context.Context, updates <-chan source.Update, failed <-chan error) error {
	if known, err := a.awaitNode(ctx, failed); !known {
		return err
	}
	var gathered source.Update
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-a.nodeChanged:
			if !a.readNode() {
				time.AfterFunc(retryAfter, func() { notify(a.nodeChanged) })
			}
			a.applyNode()
		case <-retry:
			retry = nil
			a.retry()
		case u := <-updates:
			if !a.seen {
				a.noteProblems(u)
				merge(&gathered, u)
				if !gathered.Synced {
					continue
				}
				u, gathered = gathered, source.Update{}
			}
			a.apply(u)
		}
		err := a.noteProgress()
		// Changes that keep coming must not put it off.
		if err != nil && retry == nil {
			a.log.Error("tables are not up to date, trying again", "error", err, "after", retryAfter)
			retry = time.After(retryAfter)
		}
		a.problems.set("tables", errorProblem(err))
	}
}

// merge adds u to what was gathered before everything was known once.
func merge(into *source.Update, u source.Update) {
	if into.Services == nil {
		*into = u
		return
	}
	for name, s := range u.Services {
		into.Services[name] = s
	}
	for name, s := range u.Slices {
		into.Slices[name] = s
	}
	for key, p := range u.Problems {
		into.Problems[key] = p
	}
	if u.Node != nil {
		into.Node = u.Node
	}
	into.ServiceCIDRs, into.CIDRsKnown, into.Synced = u.ServiceCIDRs, u.CIDRsKnown, u.Synced
}

// apply takes one batch from objects to tables.
func (a *Agent) apply(u source.Update) {
	begin := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	first := !a.seen
	if first {
		// What a first load makes stays: the collector would find nothing to
		// free, and take a processor from it. A memory limit is obeyed still.
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
	}
	a.proxy.Begin(begin)
	a.guardAPIServers(&u)
	var errs []error
	if u.Node != nil {
		a.node = withPrimary(*u.Node, a.cfg.Options.NodeIP)
		a.proxy.SetNode(a.node.Leaving)
	}
	if first || u.Node != nil || !equalPrefixes(u.ServiceCIDRs, a.cidrs) {
		a.cidrs = u.ServiceCIDRs
		errs = append(errs, a.writeNode())
	}
	changes := a.compiler.Apply(compile.Update{Services: u.Services, Slices: u.Slices, Node: u.Node})
	if !first && !a.synced {
		changes = a.everything(changes)
	}
	if first || len(changes) > 0 {
		errs = append(errs, a.writePorts(changes))
	}
	a.seen = true
	if errors.Join(errs...) == nil {
		a.measure(u, changes, begin, first)
	}
	a.afterwards(u, changes, begin)
}

// afterwards is everything that can wait until the tables are right.
func (a *Agent) afterwards(u source.Update, changes []compile.Change, begin time.Time) {
	a.changes += uint64(len(changes))
	switch {
	case a.synced:
		a.diary.write(changes, time.Since(begin))
	case a.reconciler.Attached():
		a.takeOver(len(changes), begin)
	}
	a.noteChecks(u, changes)
	a.nodePorts.note(changes)
	a.noteProblems(u)
	if generation := a.compiler.ProblemsGeneration(); generation != a.problems.compiled {
		a.problems.compiled = generation
		list, _ := a.compiler.Problems()
		a.problems.set("compile", list)
	}
	if touchesUDP(changes) {
		notify(a.sweep)
	}
}

func since(triggered, begin time.Time) time.Time {
	if triggered.IsZero() {
		return begin
	}
	return triggered
}

func (a *Agent) noteProblems(u source.Update) {
	for key, list := range u.Problems {
		a.problems.set("source "+key, list)
	}
}

func touchesUDP(changes []compile.Change) bool {
	for i := range changes {
		if changes[i].ID.Protocol == service.UDP {
			return true
		}
	}
	return false
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func hostRelease() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return string(release[:max(0, len(release)-1)])
}
