// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"fmt"
	"net/netip"
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

// restart ends the agent "here" and starts another one.
func (s *stage) restart() {
	s.t.Helper()
	if err := s.agents[0].Stop(patience); err != nil {
		s.t.Fatal(err)
	}
	s.agents[0] = s.runAgent(0)
	s.awaitAgent(s.nodes[0])
}

// logged looks for a line of the agent "here".
func (s *stage) logged(words []string) error {
	for _, line := range strings.Split(s.agents[0].Output(), "\n") {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return nil
		}
	}
	return fmt.Errorf("the agent has no line with %q", words)
}
