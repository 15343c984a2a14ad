// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// headStart is how long an address is waited for before the next one is tried,
// too.
const headStart = 300 * time.Millisecond

// dialer connects to the API server: at its configured address, and, where that
// does not answer at once, at the endpoints that it had when this node last
// heard of them. After a boot the configured address may be the ClusterIP of
// the Service kubernetes, which nobody translates before an agent runs. Who
// answers is proven by TLS: the name that a certificate must have is that of
// the configured address.
type dialer struct {
	address    string // "host:port" as the HTTP client asks for it
	remembered []netip.AddrPort
	hint       string // for an error, when nothing is remembered
	net        net.Dialer
	headStart  time.Duration
}

// newDialer is for the API server at host, a URL or "host:port".
func newDialer(host string, remembered []netip.AddrPort, inCluster bool) *dialer {
	d := &dialer{remembered: remembered, headStart: headStart, net: net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}}
	if u, err := url.Parse(host); err == nil && u.Host != "" {
		d.address = u.Host
		if u.Port() == "" {
			port := "443"
			if u.Scheme == "http" {
				port = "80"
			}
			d.address = net.JoinHostPort(u.Hostname(), port)
		}
	}
	if inCluster && len(remembered) == 0 {
		d.hint = "; if this is the ClusterIP of the Service kubernetes, nobody translates it before the agent has once reached an API server: set KUBERNETES_SERVICE_HOST and _PORT to one, or give --kubeconfig"
	}
	return d
}

// Dial is what an HTTP transport calls.
func (d *dialer) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	targets := []string{address}
	if address == d.address { // and not a proxy's
		for _, a := range d.shuffled() {
			targets = append(targets, a.String())
		}
	}
	conn, err := d.first(ctx, network, targets)
	if err != nil && d.hint != "" && address == d.address {
		err = fmt.Errorf("%w%s", err, d.hint)
	}
	return conn, err
}

// shuffled spreads nodes over API servers.
func (d *dialer) shuffled() []netip.AddrPort {
	out := slices.Clone(d.remembered)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

type dialed struct {
	conn net.Conn
	err  error
}

// first connects to targets one after the other, each with a head start unless
// the one before has failed already, and returns the first connection. Later
// ones are closed.
func (d *dialer) first(ctx context.Context, network string, targets []string) (net.Conn, error) {
	ctx, stop := context.WithCancel(ctx)
	results := make(chan dialed, len(targets))
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	started, ended := 0, 0
	for ended < len(targets) {
		select {
		case <-next.C:
			target := targets[started]
			started++
			go func() {
				conn, err := d.net.DialContext(ctx, network, target)
				results <- dialed{conn, err}
			}()
			if started < len(targets) {
				next.Reset(d.headStart)
			}
		case r := <-results:
			ended++
			if r.err == nil {
				go closeRest(results, started-ended, stop)
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if started < len(targets) {
				next.Reset(0)
			}
		}
	}
	stop()
	return nil, errors.Join(errs...)
}

// closeRest ends the attempts that came too late.
func closeRest(results <-chan dialed, pending int, stop func()) {
	stop()
	for range pending {
		if r := <-results; r.conn != nil {
			r.conn.Close()
		}
	}
}
