// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// open makes a socket of proto, connected to addr unless options say otherwise.
func open(proto, addr string, options Options) (*socket, error) {
	remote, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("parse address: %w", err)
	}
	s, err := newSocket(proto, remote.Addr(), options)
	if err != nil {
		return nil, err
	}
	if err := s.connect(remote); err != nil {
		_ = s.close() // the connect's error is the one that tells
		return nil, err
	}
	return s, nil
}

// bindOnly makes a socket of proto bound to addr.
func bindOnly(proto, addr string, options Options) (*socket, error) {
	local, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("parse address: %w", err)
	}
	s, err := newSocket(proto, local.Addr(), options)
	if err != nil {
		return nil, err
	}
	if err := s.bind(local); err != nil {
		_ = s.close() // the bind's error is the one that tells
		return nil, err
	}
	return s, nil
}

// dial opens a socket, asks the server once for its name and closes again.
func dial(proto, addr string, options Options) (r Result) {
	began := time.Now()
	defer func() { r.Took = time.Since(began) }()
	s, err := open(proto, addr, options)
	if err != nil {
		r.fail(err)
		return r
	}
	defer func() {
		if err := s.close(); err != nil && r.OK() {
			r.fail(err)
		}
	}()
	s.names(&r)
	if err := s.send(question(proto)); err != nil {
		r.fail(err)
		return r
	}
	r.fail(s.answer(&r))
	s.names(&r) // an unconnected socket has its local port only now
	return r
}

// fail notes err in the result; nil changes nothing.
func (r *Result) fail(err error) {
	var call *callError
	switch {
	case err == nil:
	case errors.As(err, &call):
		r.Stage, r.Errno = call.stage, call.errno
	default:
		r.Problem = err.Error()
	}
}

// question is what a client sends; servers answer "NAME CLIENT\n", except that
// an HTTP server puts the name in the body and the client in a header.
func question(proto string) []byte {
	if proto == "http" {
		return []byte("GET / HTTP/1.1\r\nHost: probe\r\n\r\n")
	}
	return []byte("who\n")
}

// clientHeader carries the client's address in an HTTP answer.
const clientHeader = "X-Client-Address"

// answer reads one answer into r.
func (s *socket) answer(r *Result) error {
	if s.proto == "udp" {
		buf := make([]byte, 2048)
		n, from, err := s.receive(buf, s.deadline())
		if err != nil {
			return err
		}
		r.From = from
		return r.parse(string(buf[:n]))
	}
	in := bufio.NewReader(&reader{s, s.deadline()})
	if s.proto == "http" {
		return r.parseHTTP(in)
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	return r.parse(line)
}

func (r *Result) parse(line string) error {
	name, seen, ok := strings.Cut(strings.TrimSpace(line), " ")
	if !ok {
		return fmt.Errorf("answer %q is no answer of a probe server", line)
	}
	addr, err := netip.ParseAddrPort(seen)
	if err != nil {
		return fmt.Errorf("answer %q: %w", line, err)
	}
	r.Backend, r.Seen = name, addr
	return nil
}

func (r *Result) parseHTTP(in *bufio.Reader) error {
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("http status %s", resp.Status)
	}
	return r.parse(strings.TrimSpace(string(body)) + " " + resp.Header.Get(clientHeader))
}

// reader lets bufio read a stream socket until the deadline.
type reader struct {
	s        *socket
	deadline time.Time
}

func (r *reader) Read(p []byte) (int, error) {
	n, _, err := r.s.receive(p, r.deadline)
	if err == nil && n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, err
}
