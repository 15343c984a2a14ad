// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/test/k8s/cluster"
	"portolan.dev/portolan/test/paths"
	"portolan.dev/portolan/test/world"
)

const (
	// dialLimit is how long a client waits for a VIP that may not work yet. A
	// VIP that works answers in well under a millisecond.
	dialLimit = 20 * time.Millisecond
	// pollPause is waited between two tries, so that the client leaves the
	// processors to the dataplane.
	pollPause = 200 * time.Microsecond
	// detachLimit is how long unpinned programs may go on.
	detachLimit = 10 * time.Second
	// giveUp ends a measurement that will not succeed.
	giveUp = 10 * time.Minute
)

// figures is what one dataplane reached.
type figures struct {
	name   string
	starts []time.Duration // process start -> last probed Service answers
	flips  []time.Duration // update request sent -> new endpoint answers
	writes []time.Duration // update request sent -> API server's answer
	peak   uint64          // bytes
	// A client outside through a NodePort, against a routed pod.
	udp, tcp paths.Ratio
}

// plan says how often a dataplane is measured.
type plan struct {
	starts, flips int
	settle        time.Duration // between two changes
}

// measure starts d on n, times its starts and its endpoint changes and kills it.
func (b *bench) measure(ctx context.Context, n *cluster.Node, d cluster.Dataplane, p plan) (*figures, error) {
	pod, err := n.AddPod("client-" + n.Name())
	if err != nil {
		return nil, err
	}
	client, err := pod.Probe()
	if err != nil {
		return nil, err
	}
	f := &figures{name: d.Name}
	for i := range p.starts {
		if i > 0 {
			n.KillDataplane()
			if err := unpin(n); err != nil {
				return nil, err
			}
		}
		took, err := b.start(ctx, n, d, client)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w; its output:\n%s", d.Name, err, n.DataplaneProcess().Output())
		}
		fmt.Fprintf(os.Stderr, "%s: started in %v\n", d.Name, took.Round(time.Millisecond))
		f.starts = append(f.starts, took)
	}
	if err := b.flip(ctx, client, f, p.flips, p.settle); err != nil {
		return nil, fmt.Errorf("change endpoints under %s: %w; its output:\n%s", d.Name, err, n.DataplaneProcess().Output())
	}
	if f.peak, err = n.DataplanePeakRSS(); err != nil {
		return nil, err
	}
	if f.udp, f.tcp, err = b.nodePort(ctx, n); err != nil {
		return nil, fmt.Errorf("reach a NodePort under %s: %w; its output:\n%s", d.Name, err, n.DataplaneProcess().Output())
	}
	n.KillDataplane()
	return f, nil
}

// unpin takes away what a killed agent left, so that the next starts from
// nothing; kube-proxy leaves nothing there.
func unpin(n *cluster.Node) error {
	entries, err := os.ReadDir(n.BPFFS())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.BPFFS(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// start starts d and returns when every probed Service has answered.
func (b *bench) start(ctx context.Context, n *cluster.Node, d cluster.Dataplane, client *world.Probe) (time.Duration, error) {
	// The kernel detaches the programs of a former start when it finds time.
	err := world.Wait(detachLimit, func() error {
		if r := client.Dial("tcp", b.vips[0], world.Timeout(dialLimit)); r.OK() {
			return fmt.Errorf("%s answers before the start", b.vips[0])
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := n.StartDataplane(d); err != nil {
		return 0, err
	}
	for _, vip := range append(slices.Clone(b.vips), b.flipVIP) {
		if err := poll(ctx, client, vip, func(world.Result) bool { return true }); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// poll dials vip until an answer is the wanted one.
func poll(ctx context.Context, client *world.Probe, vip string, wanted func(world.Result) bool) error {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	for {
		r := client.Dial("tcp", vip, world.Timeout(dialLimit))
		if r.Problem != "" {
			return r.Err()
		}
		if r.OK() && wanted(r) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("dial %s: %w; last: %v", vip, ctx.Err(), r)
		case <-time.After(pollPause):
		}
	}
}

// flip moves the one endpoint of a Service to and fro, with a pause of settle
// between changes so that none queues behind another. The first change is not
// counted: it may be none.
func (b *bench) flip(ctx context.Context, client *world.Probe, f *figures, count int, settle time.Duration) error {
	slicesAPI := b.client.DiscoveryV1().EndpointSlices(namespace)
	es, err := slicesAPI.Get(ctx, flipName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for i := range count + 1 {
		// A random part, so that changes do not beat with the dataplane's own
		// rhythm.
		time.Sleep(settle + rand.N(50*time.Millisecond))
		to := b.backends[(i+1)%2]
		es.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{to}}}

		var written time.Duration
		done := make(chan error, 1)
		began := time.Now()
		go func() {
			var err error
			es, err = slicesAPI.Update(ctx, es, metav1.UpdateOptions{})
			written = time.Since(began)
			done <- err
		}()
		err := poll(ctx, client, b.flipVIP, func(r world.Result) bool { return r.Backend == to })
		took := time.Since(began)
		if err := <-done; err != nil {
			return err
		}
		if err != nil {
			return err
		}
		if i > 0 {
			f.flips = append(f.flips, took)
			f.writes = append(f.writes, written)
		}
	}
	return nil
}

// percentile returns the p-th percentile by the nearest-rank method.
func percentile(samples []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(p/100*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}
