// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/metrics"
)

// staleAfter is how long a change may wait before the agent calls itself sick,
// as kube-proxy does.
const staleAfter = time.Minute

// serve answers operators: the portolan command on the socket, probes and
// metrics on their addresses.
func (a *Agent) serve(ctx context.Context) error {
	failed := make(chan error, 3)
	go func() { failed <- api.Serve(ctx, a.cfg.Options.Socket, api.Handler(a)) }()
	if addr := a.cfg.Options.HealthzBindAddress; addr != "" {
		go func() { failed <- a.listen(ctx, "healthz-bind-address", addr, a.healthHandler()) }()
	}
	if addr := a.cfg.Options.MetricsBindAddress; addr != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", metrics.Handler(a))
		mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "portolan") })
		go func() { failed <- a.listen(ctx, "metrics-bind-address", addr, mux) }()
	}
	select {
	case <-ctx.Done():
		// The socket's file goes with its server.
		return <-failed
	case err := <-failed:
		return err
	}
}

// listen serves on a TCP address until ctx ends. A busy one, as kube-proxy
// holds it during a migration, is tried again.
func (a *Agent) listen(ctx context.Context, flag, addr string, handler http.Handler) error {
	for {
		listener, err := net.Listen("tcp", addr)
		if err == nil {
			server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
			stop := context.AfterFunc(ctx, func() { server.Close() })
			defer stop()
			a.problems.set(flag, nil)
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("--%s %s: %w", flag, addr, err)
			}
			return nil
		}
		a.problems.set(flag, errorProblem(fmt.Errorf("--%s %s: %w; stop who holds it, or choose another (empty: off)", flag, addr, err)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Second):
		}
	}
}

// healthBody is the body of /healthz, /livez and /readyz, with kube-proxy's names.
type healthBody struct {
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	Healthy     bool      `json:"healthy"`
}

// alive tells whether changes reach the tables, and when they last did.
func (a *Agent) alive() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if !a.waiting.IsZero() && now.Sub(a.waiting) > staleAfter {
		return a.waiting, false
	}
	return now, true
}

func (a *Agent) healthHandler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, updated time.Time, healthy bool) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		// The peer may have gone: nobody is left to be told.
		_ = json.NewEncoder(w).Encode(healthBody{updated, time.Now(), healthy})
	}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		updated, ok := a.alive()
		answer(w, updated, ok)
	})
	ready := func(w http.ResponseWriter, _ *http.Request) {
		updated, ok := a.alive()
		a.mu.Lock()
		synced := a.synced
		a.mu.Unlock()
		answer(w, updated, ok && synced)
	}
	mux.HandleFunc("GET /readyz", ready)
	mux.HandleFunc("GET /healthz", ready)
	return mux
}
