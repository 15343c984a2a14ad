// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/pkg/metrics"
)

// serve answers operators: the portolan command on the socket, probes and
// metrics on their addresses.
func (a *Agent) serve(ctx context.Context) error {
	failed := make(chan error, 3)
	go func() { failed <- api.Serve(ctx, a.cfg.Options.Socket, api.Handler(a)) }()
	if addr := a.cfg.Options.HealthzBindAddress; addr != "" {
		go func() { failed <- a.listen(ctx, "healthz-bind-address", addr, a.proxy.Handler()) }()
	}
	if addr := a.cfg.Options.MetricsBindAddress; addr != "" {
		go func() { failed <- a.listen(ctx, "metrics-bind-address", addr, a.metricsHandler()) }()
	}
	select {
	case <-ctx.Done():
		// The socket's file goes with its server.
		return <-failed
	case err := <-failed:
		return err
	}
}

// metricsHandler answers what kube-proxy answers on its metrics port.
func (a *Agent) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Handler(a, a.recorder))
	mux.Handle("GET /proxyMode", plain("portolan"))
	mux.Handle("GET /healthz", plain("ok")) // of this server; the proxy's has a port of its own
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// The peer may have gone: nobody is left to be told.
		_ = json.NewEncoder(w).Encode(map[string]any{"portolan.dev": a.cfg.Options.Dump()})
	})
	if a.cfg.Options.Profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
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
		if a.cfg.Options.BindAddressHardFail {
			return fmt.Errorf("--%s %s: %w; stop who holds it, choose another (empty: off), or leave --bind-address-hard-fail out to have it tried again", flag, addr, err)
		}
		a.problems.set(flag, errorProblem(fmt.Errorf("--%s %s: %w; stop who holds it, or choose another (empty: off)", flag, addr, err)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Second):
		}
	}
}

// plain answers one word.
func plain(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, text)
	})
}
