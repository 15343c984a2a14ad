// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// Main runs the probe on the control socket that the environment names and
// returns when the parent closes it. It returns an error for a control socket
// that cannot be used.
func Main() error {
	fd, err := strconv.Atoi(os.Getenv(EnvVar))
	if err != nil {
		return fmt.Errorf("read %s: %w", EnvVar, err)
	}
	file := os.NewFile(uintptr(fd), "control")
	conn, err := net.FileConn(file)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	s := &server{out: json.NewEncoder(conn), handles: map[uint64]*handle{}, hammers: map[uint64]*hammer{}}
	in := json.NewDecoder(conn)
	for {
		var req Request
		if err := in.Decode(&req); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read request: %w", err)
		}
		go s.handle(req)
	}
}

// server carries out requests. Each runs in a goroutine of its own.
type server struct {
	outMu sync.Mutex // guards out
	out   *json.Encoder

	mu      sync.Mutex // guards the rest
	last    uint64     // the last id given
	handles map[uint64]*handle
	hammers map[uint64]*hammer
}

// handle is a socket that outlives the request that opened it.
type handle struct {
	mu sync.Mutex // one call at a time
	*socket
}

func (s *server) handle(req Request) {
	resp := Response{ID: req.ID}
	if err := s.do(req, &resp); err != nil {
		resp.Error = err.Error()
	}
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if err := s.out.Encode(resp); err != nil {
		fmt.Fprintln(os.Stderr, "write response:", err) // the parent is gone; Main ends on its own
	}
}

func (s *server) do(req Request, resp *Response) error {
	switch req.Op {
	case OpDial:
		resp.Result = dial(req.Proto, req.Addr, req.Options)
		return nil
	case OpOpen:
		s.keep(resp, func() (*socket, error) { return open(req.Proto, req.Addr, req.Options) })
		return nil
	case OpBind:
		s.keep(resp, func() (*socket, error) { return bindOnly(req.Proto, req.Addr, req.Options) })
		return nil
	case OpExchange, OpSend, OpReceive, OpPeer, OpClose:
		return s.onHandle(req, resp)
	case OpServe:
		return serve(req.Name, req.Listen)
	case OpHammer:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.last++
		resp.Handle = s.last
		s.hammers[s.last] = startHammer(req)
		return nil
	case OpReport, OpStop:
		return s.onHammer(req, resp)
	case OpCgroup:
		text, err := os.ReadFile("/proc/self/cgroup")
		resp.Text = string(text)
		return err
	}
	return fmt.Errorf("unknown request %q", req.Op)
}

// keep opens a socket and stores it as a handle.
func (s *server) keep(resp *Response, open func() (*socket, error)) {
	began := time.Now()
	sock, err := open()
	resp.Result.Took = time.Since(began)
	if err != nil {
		resp.Result.fail(err)
		return
	}
	sock.names(&resp.Result)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	resp.Handle = s.last
	s.handles[s.last] = &handle{socket: sock}
}

func (s *server) onHandle(req Request, resp *Response) error {
	s.mu.Lock()
	h := s.handles[req.Handle]
	if req.Op == OpClose {
		delete(s.handles, req.Handle)
	}
	s.mu.Unlock()
	if h == nil {
		return fmt.Errorf("no open socket %d", req.Handle)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	began := time.Now()
	r := &resp.Result
	if req.Options.Timeout > 0 {
		h.options.Timeout = req.Options.Timeout
	}
	switch req.Op {
	case OpClose:
		r.fail(h.close())
		return nil
	case OpSend:
		r.fail(h.send(question(h.proto)))
	case OpReceive:
		r.fail(h.answer(r))
	case OpExchange:
		if err := h.send(question(h.proto)); err != nil {
			r.fail(err)
		} else {
			r.fail(h.answer(r))
		}
	}
	h.names(r)
	r.Took = time.Since(began)
	return nil
}

func (s *server) onHammer(req Request, resp *Response) error {
	s.mu.Lock()
	h := s.hammers[req.Handle]
	s.mu.Unlock()
	if h == nil {
		return fmt.Errorf("no hammer %d", req.Handle)
	}
	if req.Op == OpReport {
		resp.Report = h.snapshot()
		return nil
	}
	if h.unlimited() {
		h.stop()
	}
	resp.Report = h.wait()
	return nil
}
