// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"portolan.dev/portolan/pkg/service"
)

// Config is what servers of health checks need.
type Config struct {
	// Healthy tells whether the proxy itself works: if not, every check fails.
	Healthy func() bool
	Logger  *slog.Logger
}

// Servers answer health checks. Sync and Close are for one goroutine.
type Servers struct {
	cfg     Config
	servers map[netip.AddrPort]*server
	running sync.WaitGroup
}

// server answers for one Service on one address and port.
type server struct {
	http     http.Server
	listener net.Listener
	check    atomic.Pointer[Check]
	ended    atomic.Bool
}

// close frees the port at once, also of a server that has hardly begun.
func (s *server) close() {
	s.http.Close()
	s.listener.Close()
}

// NewServers returns Servers that listen nowhere yet.
func NewServers(cfg Config) *Servers {
	return &Servers{cfg: cfg, servers: map[netip.AddrPort]*server{}}
}

// Sync makes exactly these checks answered, on the addresses of their family.
// A server whose port goes to another Service stays and answers for that one.
// What cannot be listened on is returned, a problem a Service; call again when
// something changed, or after a while.
func (s *Servers) Sync(checks []Check, addrs []netip.Addr) []service.Problem {
	wanted := map[netip.AddrPort]bool{}
	for _, c := range checks {
		for _, a := range addrs {
			if service.FamilyOf(a) == c.Family {
				wanted[netip.AddrPortFrom(a, c.Port)] = true
			}
		}
	}
	// What goes away goes first: an unspecified address excludes the others.
	for at, have := range s.servers {
		if !wanted[at] || have.ended.Load() {
			have.close()
			delete(s.servers, at)
			s.cfg.Logger.Debug("health check closed", "address", at)
		}
	}
	failed := map[service.Name][]error{}
	for i := range checks {
		c := &checks[i]
		for _, a := range addrs {
			if service.FamilyOf(a) != c.Family {
				continue
			}
			if err := s.answer(netip.AddrPortFrom(a, c.Port), c); err != nil {
				failed[c.Service] = append(failed[c.Service], err)
			}
		}
	}
	return failures(checks, failed)
}

// failures puts into words, once a Service, where it cannot be listened.
func failures(checks []Check, failed map[service.Name][]error) []service.Problem {
	var problems []service.Problem
	for _, c := range checks {
		errs := failed[c.Service]
		if len(errs) == 0 {
			continue
		}
		delete(failed, c.Service)
		texts := make([]string, 0, len(errs))
		for _, err := range errs {
			texts = append(texts, err.Error())
		}
		problems = append(problems, service.Problem{Object: "Service " + c.Service.String(), Reason: service.ReasonHealthPort,
			Message: fmt.Sprintf("healthCheckNodePort %d is not answered, so that a load balancer passes this node by: %s; end what holds the port: it is tried again",
				c.Port, strings.Join(texts, ", "))})
	}
	return problems
}

// answer has a check answered at one address.
func (s *Servers) answer(at netip.AddrPort, c *Check) error {
	if have := s.servers[at]; have != nil {
		have.check.Store(c)
		return nil
	}
	network := "tcp6"
	if at.Addr().Is4() {
		network = "tcp4"
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), network, at.String())
	if err != nil {
		// The address is in the error already, the call is of no interest.
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err
		}
		return fmt.Errorf("listen on %s: %w", at, err)
	}
	fresh := &server{listener: listener}
	fresh.check.Store(c)
	fresh.http = http.Server{
		Handler: fresh.handler(s.cfg.Healthy), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	s.servers[at] = fresh
	s.running.Go(func() {
		if err := fresh.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Logger.Warn("health check stopped answering, trying again", "address", at, "error", err)
			fresh.ended.Store(true)
		}
	})
	s.cfg.Logger.Debug("health check answered", "address", at, "service", c.Service.String())
	return nil
}

// Listening returns where is listened, sorted.
func (s *Servers) Listening() []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(s.servers))
	for at := range s.servers {
		out = append(out, at)
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// Close stops all servers and waits for them.
func (s *Servers) Close() {
	for at, have := range s.servers {
		have.close()
		delete(s.servers, at)
	}
	s.running.Wait()
}

// handler answers as kube-proxy does, to the byte: controllers of load
// balancers compare it.
func (s *server) handler(healthy func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c := s.check.Load()
		proxy := healthy()
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.Local))
		if c.Local == 0 || !proxy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
			c.Service.Namespace, c.Service.Name, c.Local, proxy)
	})
}
