// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/test/world"
)

// Steps that go on until the end of their script.

// keep calls until the function that it returns is called, which tells whether
// a call failed.
func (s *stage) keep(st step) func() {
	s.t.Helper()
	hammer := world.Must(s.probes[st.who].Hammer(st.proto, s.fill(st.target), world.HammerConfig{
		Pause: 2 * time.Millisecond, Options: []world.Option{world.Timeout(short)},
	}))(s.t)
	return func() {
		if r, err := hammer.Stop(); err != nil || r.Total == 0 || r.Failed > 0 {
			s.t.Errorf("line %d: %s: %v; %d of %d calls failed: %+v", st.line, st.text, err, r.Failed, r.Total, r.Failures)
		}
	}
}

// stay opens a connection, which must answer when the function that it returns
// is called.
func (s *stage) stay(st step) func() {
	s.t.Helper()
	conn, r := s.probes[st.who].Open(st.proto, s.fill(st.target), world.Timeout(short))
	if r.Err() != nil {
		s.t.Fatalf("line %d: %s: %v", st.line, st.text, r.Err())
	}
	first := conn.Exchange()
	return func() {
		defer conn.Close()
		if last := conn.Exchange(); first.Err() != nil || last.Err() != nil || last.Backend != first.Backend {
			s.t.Errorf("line %d: %s: %q %v at first, %q %v at last", st.line, st.text, first.Backend, first.Err(), last.Backend, last.Err())
		}
	}
}

// gain gives the node "here" an address until the function that it returns is
// called.
func (s *stage) gain(text string) func() {
	s.t.Helper()
	addr, err := netlink.ParseAddr(netip.MustParsePrefix(text).String())
	if err != nil {
		s.t.Fatal(err)
	}
	on := func(change func(netlink.Link, *netlink.Addr) error) {
		err := s.nodes[0].Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return change(link, addr)
		})
		if err != nil {
			s.t.Errorf("address %s of node here: %v", text, err)
		}
	}
	on(netlink.AddrAdd)
	return func() { on(netlink.AddrDel) }
}

// restart ends the agent of a node, starts another one and waits until it has
// taken over.
func (s *stage) restart(i int) {
	s.t.Helper()
	if err := s.agents[i].Stop(patience); err != nil {
		s.t.Fatal(err)
	}
	s.agents[i] = s.runAgent(i)
	s.awaitAgent(s.nodes[i])
	err := world.Wait(time.Minute, func() error {
		out, err := s.portolan(i, "status", "-o", "jsonpath={.pid} {.synced}")
		if want := fmt.Sprintf("%d true", s.agents[i].PID()); err == nil && strings.TrimSpace(out) != want {
			err = fmt.Errorf("status says %q, want %q", out, want)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// agentsWith starts both agents again with these flags beside those of the
// stage.
func (s *stage) agentsWith(flags []string) {
	s.t.Helper()
	s.more = nil
	for _, f := range flags {
		s.more = append(s.more, s.fill(f))
	}
	for i := range s.nodes {
		s.restart(i)
	}
}

// agentsAsEver starts both agents as they were if a script has changed them.
func (s *stage) agentsAsEver() {
	if s.more != nil {
		s.agentsWith(nil)
	}
}

// portolan runs the command on a node and returns what it prints. A negative
// finding is no error.
func (s *stage) portolan(i int, args ...string) (string, error) {
	n := s.nodes[i]
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(programs.portolan, append(args, "--socket", n.Socket(), "--bpffs-root", n.BPFFS())...).Output()
		return err
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if err = fmt.Errorf("portolan %s: %w: %s", args[0], err, exit.Stderr); exit.ExitCode() == 1 {
			err = nil
		}
	}
	return string(out), err
}

// logged looks for a line of the agent "here".
func (s *stage) logged(words []string) error {
	return hasLine(s.agents[0].Output(), words)
}

// told looks for a line that the portolan command prints on the node "here".
func (s *stage) told(args, words []string) error {
	out, err := s.portolan(0, args...)
	if err != nil {
		return err
	}
	return hasLine(out, words)
}

func hasLine(text string, words []string) error {
	for _, line := range strings.Split(text, "\n") {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return nil
		}
	}
	return fmt.Errorf("no line has %q", words)
}

// filter gives both nodes rules of nftables until the function that it returns
// is called.
func (s *stage) filter(rules string) func() {
	s.t.Helper()
	load := func(text string) error {
		var errs []error
		for _, n := range s.nodes {
			errs = append(errs, n.Do(func() error {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader(text)
				out, err := cmd.CombinedOutput()
				if err != nil {
					err = fmt.Errorf("nft: %w: %s", err, out)
				}
				return err
			}))
		}
		return errors.Join(errs...)
	}
	if err := load(s.fill(rules)); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		if err := load("flush ruleset"); err != nil {
			s.t.Error(err)
		}
	}
}
