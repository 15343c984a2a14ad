// SPDX-License-Identifier: Apache-2.0

package world

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/test/world/internal/probe"
)

// What a probe tells; see the fields' own comments.
type (
	// Result is what the calls on one socket gave.
	Result = probe.Result
	// Report sums up a hammer.
	Report = probe.Report
	// Failure is one dial of a hammer that did not get its answer.
	Failure = probe.Failure
)

// defaultTimeout limits a socket call of a probe unless Timeout is given.
const defaultTimeout = 3 * time.Second

// Option changes how a probe opens a socket.
type Option func(*probe.Options)

// From binds the socket to "address:port" before it connects.
func From(addrPort string) Option { return func(o *probe.Options) { o.Source = addrPort } }

// Mapped uses an AF_INET6 socket and the IPv4-mapped form of the address.
func Mapped() Option { return func(o *probe.Options) { o.Mapped = true } }

// Unconnected sends UDP with sendto and receives with recvfrom.
func Unconnected() Option { return func(o *probe.Options) { o.Unconnected = true } }

// Timeout limits each socket call, scaled: where everything is slow a late answer
// must not count as silence. A call that takes longer ends with ETIMEDOUT.
func Timeout(d time.Duration) Option {
	return func(o *probe.Options) { o.Timeout = Scaled(d) }
}

func options(opts []Option) probe.Options {
	o := probe.Options{Timeout: Scaled(defaultTimeout)}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Probe is a child process that opens sockets on request. Its methods may be
// called concurrently.
type Probe struct {
	*Process
	conn net.Conn

	mu      sync.Mutex // guards the rest, and writing to conn
	last    uint64
	waiting map[uint64]chan probe.Response
	dead    error // why no answer will come any more
}

// Probe starts a probe in the place.
func (p *Place) Probe() (*Probe, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start probe: socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "probe"), os.NewFile(uintptr(pair[1]), "probe")
	defer ours.Close() // FileConn keeps its own copy
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("start probe: %w", err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "probe"
	cmd.ExtraFiles = []*os.File{theirs} // the first becomes descriptor 3
	cmd.Env = append(os.Environ(), probe.EnvVar+"=3")
	proc, err := p.StartCmd(cmd)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	pr := &Probe{Process: proc, conn: conn, waiting: map[uint64]chan probe.Response{}}
	go pr.read()
	return pr, nil
}

// read hands responses to those who wait for them until the probe ends.
func (p *Probe) read() {
	in := json.NewDecoder(p.conn)
	for {
		var resp probe.Response
		err := in.Decode(&resp)
		p.mu.Lock()
		if err != nil {
			p.dead = fmt.Errorf("%s has ended: %s", p.label, p.Output())
			for _, ch := range p.waiting {
				close(ch)
			}
			p.mu.Unlock()
			_ = p.conn.Close()
			return
		}
		ch := p.waiting[resp.ID]
		delete(p.waiting, resp.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- resp
		}
	}
}

// ask sends a request and waits for its answer. The wait ends with the probe,
// and every request of the probe's ends by its own timeout.
func (p *Probe) ask(req probe.Request) (probe.Response, error) {
	ch := make(chan probe.Response, 1)
	p.mu.Lock()
	if p.dead != nil {
		p.mu.Unlock()
		return probe.Response{}, p.dead
	}
	p.last++
	req.ID = p.last
	p.waiting[req.ID] = ch
	err := json.NewEncoder(p.conn).Encode(req)
	p.mu.Unlock()
	if err != nil {
		_ = p.conn.Close() // read finds out that the probe is gone, and why
	}
	resp, ok := <-ch
	if !ok {
		return probe.Response{}, p.dead
	}
	if resp.Error != "" {
		return resp, fmt.Errorf("%s: %s", p.label, resp.Error)
	}
	return resp, nil
}

// result is ask for requests whose answer is a Result.
func (p *Probe) result(req probe.Request) (Result, uint64) {
	resp, err := p.ask(req)
	if err != nil {
		resp.Result.Problem = err.Error()
	}
	return resp.Result, resp.Handle
}

// Dial opens a socket to "address:port", asks the server for its name once and
// closes it. Proto is "tcp", "udp", "sctp" or "http".
func (p *Probe) Dial(proto, addr string, opts ...Option) Result {
	r, _ := p.result(probe.Request{Op: probe.OpDial, Proto: proto, Addr: addr, Options: options(opts)})
	return r
}

// Bind binds a socket to "address:port" and closes it again.
func (p *Probe) Bind(proto, addr string, opts ...Option) Result {
	c, r := p.hold(probe.OpBind, proto, addr, opts)
	c.Close()
	return r
}

// Hold binds a socket to "address:port" and keeps it.
func (p *Probe) Hold(proto, addr string, opts ...Option) (*Conn, Result) {
	return p.hold(probe.OpBind, proto, addr, opts)
}

// Open opens a socket, connects it (unless Unconnected) and keeps it.
func (p *Probe) Open(proto, addr string, opts ...Option) (*Conn, Result) {
	return p.hold(probe.OpOpen, proto, addr, opts)
}

func (p *Probe) hold(op probe.Op, proto, addr string, opts []Option) (*Conn, Result) {
	r, handle := p.result(probe.Request{Op: op, Proto: proto, Addr: addr, Options: options(opts)})
	return &Conn{probe: p, handle: handle}, r
}

// Cgroup returns the text of the probe's /proc/self/cgroup.
func (p *Probe) Cgroup() (string, error) {
	resp, err := p.ask(probe.Request{Op: probe.OpCgroup})
	return resp.Text, err
}

// Close ends the probe and every socket of it.
func (p *Probe) Close() { p.Kill() }

// Conn is a socket that a probe keeps open. A Conn whose opening failed is not
// nil; its methods report a Problem.
type Conn struct {
	probe  *Probe
	handle uint64
}

// Exchange asks the server for its name over the open socket.
func (c *Conn) Exchange() Result { return c.do(probe.OpExchange) }

// Send sends one question without waiting for the answer.
func (c *Conn) Send() Result { return c.do(probe.OpSend) }

// Receive waits for one answer.
func (c *Conn) Receive() Result { return c.do(probe.OpReceive) }

// Names asks getsockname and getpeername again.
func (c *Conn) Names() Result { return c.do(probe.OpPeer) }

// Close closes the socket.
func (c *Conn) Close() Result {
	if c.handle == 0 {
		return Result{} // it was never open
	}
	return c.do(probe.OpClose)
}

func (c *Conn) do(op probe.Op) Result {
	r, _ := c.probe.result(probe.Request{Op: op, Handle: c.handle})
	return r
}
