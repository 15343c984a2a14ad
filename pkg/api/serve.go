// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Provider is what the agent has to tell. Methods may be called at any time
// from several goroutines.
type Provider interface {
	Status() Status
	Services() ServiceList
	Tables() Tables
}

// Handler serves a provider's objects under /v1.
func Handler(p Provider) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { write(w, p.Status()) })
	mux.HandleFunc("GET /v1/services", func(w http.ResponseWriter, _ *http.Request) { write(w, p.Services()) })
	mux.HandleFunc("GET /v1/tables", func(w http.ResponseWriter, _ *http.Request) { write(w, p.Tables()) })
	return mux
}

func write(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	// The peer may have gone: nobody is left to be told.
	_ = json.NewEncoder(w).Encode(object)
}

// Serve answers on a unix socket that only its owner may use, until ctx ends.
// A socket that a dead agent left is replaced; a live one's is an error.
func Serve(ctx context.Context, path string, handler http.Handler) error {
	listener, err := listen(path)
	if err != nil {
		return fmt.Errorf("--socket %s: %w", path, err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--socket %s: %w", path, err)
	}
	return nil
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}

// removeStale makes room for a socket. Only what is known to be the socket of a
// process that is gone is removed.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return errors.New("there is a file that is no socket; remove it, or name another path")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return errors.New("another agent answers there; stop it, or give this one a socket of its own")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("find out whether another agent answers: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("replace the socket of a dead agent: %w", err)
	}
	return nil
}

// ErrNoAgent means that no agent answers on the socket.
var ErrNoAgent = errors.New("no agent answers")

// Client asks an agent.
type Client struct{ http http.Client }

// NewClient asks the agent on a socket; a request takes at most timeout.
func NewClient(socket string, timeout time.Duration) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{http.Client{Timeout: timeout, Transport: &http.Transport{DialContext: dial}}}
}

// Status fetches the agent's state. Like Services and Tables it returns
// ErrNoAgent when nobody listens on the socket.
func (c *Client) Status() (Status, error) { return get[Status](c, "status") }

// Services fetches the Services that the agent knows.
func (c *Client) Services() (ServiceList, error) { return get[ServiceList](c, "services") }

// Tables fetches what the compiled tables say.
func (c *Client) Tables() (Tables, error) { return get[Tables](c, "tables") }

func get[T any](c *Client, what string) (T, error) {
	var object T
	answer, err := c.http.Get("http://agent/v1/" + what)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return object, fmt.Errorf("%w: %w", ErrNoAgent, err)
		}
		if errors.Is(err, fs.ErrPermission) {
			return object, fmt.Errorf("ask the agent for %s: %w; run as the user that the agent runs as", what, err)
		}
		return object, fmt.Errorf("ask the agent for %s: %w", what, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return object, fmt.Errorf("ask the agent for %s: %s", what, answer.Status)
	}
	if err := json.NewDecoder(answer.Body).Decode(&object); err != nil {
		return object, fmt.Errorf("read the agent's %s: %w", what, err)
	}
	return object, nil
}
