// SPDX-License-Identifier: Apache-2.0

// Package probe is the child-process half of test/world: a small program that
// opens sockets and serves requests on its parent's behalf. It exists because
// cgroup programs act on sockets of processes inside the cgroup, so a test can
// only see what a pod sees through a process that lives there.
//
// It imports the standard library and golang.org/x/sys only. The invariant it
// guards: every socket call's outcome is reported as the kernel gave it, with
// the exact errno and the call that returned it; nothing is retried, hidden or
// waited for without a limit.
package probe

import (
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// EnvVar marks a process as a probe; its value is the file descriptor number
// of the control socket.
const EnvVar = "PORTOLAN_WORLD_PROBE_FD"

// AddressCalled as a server's name stands for the address that the client
// called, with stream sockets.
const AddressCalled = "*"

// Op names what a Request asks for.
type Op string

// The operations a probe knows.
const (
	OpDial     Op = "dial"     // open, exchange once, close
	OpOpen     Op = "open"     // open (and connect, unless Unconnected); keep as a handle
	OpExchange Op = "exchange" // send and receive on a handle
	OpSend     Op = "send"     // send on a handle
	OpReceive  Op = "receive"  // receive on a handle
	OpPeer     Op = "peer"     // getpeername and getsockname on a handle
	OpClose    Op = "close"    // close a handle
	OpBind     Op = "bind"     // bind, keep as a handle
	OpServe    Op = "serve"    // listen and answer for as long as the process lives
	OpHammer   Op = "hammer"   // dial again and again in the background
	OpReport   Op = "report"   // what a hammer has seen so far
	OpStop     Op = "stop"     // end a hammer and tell what it has seen
	OpCgroup   Op = "cgroup"   // the text of /proc/self/cgroup
)

// Options change how a socket is opened.
type Options struct {
	// Source is the "address:port" to bind before connecting. Empty leaves
	// the choice to the kernel.
	Source string `json:",omitempty"`
	// Mapped opens an AF_INET6 socket and uses ::ffff:a.b.c.d for an IPv4
	// address.
	Mapped bool `json:",omitempty"`
	// Unconnected sends UDP with sendto and receives with recvfrom, without
	// a connect.
	Unconnected bool `json:",omitempty"`
	// Timeout limits each socket call that can block.
	Timeout time.Duration
}

// Request is one order from the parent. Requests run concurrently.
type Request struct {
	ID      uint64
	Op      Op
	Proto   string   `json:",omitempty"`
	Addr    string   `json:",omitempty"`
	Options Options  `json:"Options"`
	Handle  uint64   `json:",omitempty"`
	Name    string   `json:",omitempty"`
	Listen  []string `json:",omitempty"`
	// Workers and Count bound a hammer: goroutines, and dials in all
	// (0 = until stopped). Pause is waited by a worker between two dials.
	Workers int           `json:",omitempty"`
	Count   int           `json:",omitempty"`
	Pause   time.Duration `json:",omitempty"`
}

// Response answers the Request of the same ID.
type Response struct {
	ID     uint64
	Handle uint64 `json:",omitempty"`
	// Error tells of a request that the probe could not carry out at all, as
	// opposed to a socket call that failed.
	Error  string `json:",omitempty"`
	Text   string `json:",omitempty"`
	Result Result `json:"Result"`
	Report Report `json:"Report"`
}

// Result is what the calls on one socket gave.
type Result struct {
	// Backend is the name the server answered with.
	Backend string
	// Seen is the client's address as the server saw it.
	Seen netip.AddrPort
	// Peer is what getpeername said, Local what getsockname said. Addresses
	// of an IPv4-mapped socket stay mapped. Peer is zero when the socket is
	// not connected.
	Peer, Local netip.AddrPort
	// From is the source address recvfrom gave with the answer (UDP only).
	From netip.AddrPort
	// Stage is the call that failed ("socket", "bind", "connect", "send",
	// "receive", "close"), empty when all went well; Errno is its errno, with
	// ETIMEDOUT also for a call that outlasted Options.Timeout.
	Stage string
	Errno syscall.Errno
	// Took is the time from the first call to the last.
	Took time.Duration
	// Problem is set when the probe itself failed: no such handle, a dead
	// probe, an answer that is no answer.
	Problem string
}

// OK reports whether every call succeeded.
func (r Result) OK() bool { return r.Stage == "" && r.Problem == "" }

// Err returns nil if every call succeeded, else an error that wraps Errno.
func (r Result) Err() error {
	switch {
	case r.Problem != "":
		return fmt.Errorf("probe: %s", r.Problem)
	case r.Stage != "":
		return fmt.Errorf("%s: %w", r.Stage, r.Errno)
	}
	return nil
}

// String describes the result in one line for test logs.
func (r Result) String() string {
	if err := r.Err(); err != nil {
		return fmt.Sprintf("%v after %v", err, r.Took.Round(time.Microsecond))
	}
	return fmt.Sprintf("backend %q saw %v; local %v peer %v from %v", r.Backend, r.Seen, r.Local, r.Peer, r.From)
}

// Failure is one dial of a hammer that did not get its answer.
type Failure struct {
	Time    time.Time
	Stage   string
	Errno   syscall.Errno
	Problem string
}

// String describes the failure in one line.
func (f Failure) String() string {
	at := f.Time.Format("15:04:05.000000")
	if f.Problem != "" {
		return at + " " + f.Problem
	}
	return fmt.Sprintf("%s %s: %v", at, f.Stage, f.Errno)
}

// Report sums up a hammer.
type Report struct {
	// Total counts dials, Failed those of them that failed.
	Total, Failed int
	// Backends counts the answers by the name that gave them.
	Backends map[string]int
	// Failures holds the first thousand failures.
	Failures []Failure
	// Elapsed is the time since the hammer began.
	Elapsed time.Duration
}
