// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"portolan.dev/portolan/test/world"
)

// step is one line of a script:
//
//	apply FILE...                        the objects are those of the files, and no others
//	WHO PROTOCOL ADDRESS reaches NAME... each of these answers in turn, nobody else, and no call fails
//	WHO PROTOCOL ADDRESS mapped NAME...  as reaches, by IPv6 sockets that name an IPv4 address
//	WHO PROTOCOL ADDRESS itself NAME...  as reaches, by sockets that are bound to that very address
//	WHO PROTOCOL ADDRESS shares NAME...  these answer, each as often as the others
//	WHO PROTOCOL ADDRESS sticks          one endpoint answers 15 times
//	WHO PROTOCOL ADDRESS sees NAME       the endpoint sees this address as the client's
//	WHO PROTOCOL ADDRESS refused         every call fails at once with ECONNREFUSED
//	WHO PROTOCOL ADDRESS silent          nobody answers a call
//	WHO PROTOCOL ADDRESS fails ERRNO     every call fails with that error
//	WHO PROTOCOL ADDRESS named           the socket is told the address that it named
//	WHO PROTOCOL ADDRESS scatters        the ports that the endpoint sees follow no order
//	WHO PROTOCOL ADDRESS flow NAME...    within a second one of these answers the flow (see flow), for good; no NAME: nobody does
//	WHO PROTOCOL ADDRESS keeps           calls go on from here to the end, and none fails
//	WHO PROTOCOL ADDRESS stays           a connection opened here still answers at the end
//	logged WORD...                       a line of the agent "here" has all these words
//	portolan ARG... tells WORD...        a line that this command prints on the node "here" has all these words
//	gain ADDRESS/LENGTH                  the node "here" has this address from here to the end
//	restart                              the agent "here" ends and another one starts
//	agents FLAG...                       both agents start again with these flags, too, or instead, until the next such step or the end
//	nft FILE                             the nodes have these rules from here to the end
//
// PROTOCOL is tcp, udp, or sendto: UDP by a socket that does not connect.
// WHO is pod or node (on the node "here"), client (outside), other (the other
// node), or a pod that serves. Lines that begin with # are for people.
type step struct {
	line                           int
	text, who, proto, target, verb string
	args                           []string
}

// fromWire tells whether the call arrives at the node "here" as packets.
func (st *step) fromWire() bool {
	return st.who == "client" || st.who == "other" || strings.HasPrefix(st.who, "far")
}

var verbs = map[string]bool{"reaches": true, "sticks": true, "sees": true, "refused": true, "silent": true, "fails": true, "named": true, "keeps": true, "stays": true,
	"itself": true, "mapped": true, "shares": true, "scatters": true, "flow": true}

// commands are the steps in which nobody calls.
var commands = map[string]bool{"apply": true, "logged": true, "gain": true, "restart": true, "portolan": true, "agents": true, "nft": true}

func parseSteps(script string) ([]step, error) {
	var out []step
	var errs []error
	for i, text := range strings.Split(script, "\n") {
		fields := strings.Fields(text)
		switch {
		case len(fields) == 0 || fields[0] == "#":
		case fields[0] == "portolan" && !slices.Contains(fields, "tells"):
			errs = append(errs, fmt.Errorf("line %d tells nothing: %s", i+1, text))
		case commands[fields[0]]:
			out = append(out, step{line: i + 1, text: text, verb: fields[0], args: fields[1:]})
		case len(fields) < 4 || !verbs[fields[3]]:
			errs = append(errs, fmt.Errorf("line %d is no step: %s", i+1, text))
		default:
			out = append(out, step{line: i + 1, text: text, who: fields[0], proto: fields[1], target: fields[2], verb: fields[3], args: fields[4:]})
		}
	}
	return out, errors.Join(errs...)
}

const (
	short     = 2 * time.Second
	impatient = 300 * time.Millisecond
	brief     = impatient / 2
)

// errnos that scripts name.
var errnos = map[string]syscall.Errno{
	"EHOSTUNREACH": syscall.EHOSTUNREACH, "ENETUNREACH": syscall.ENETUNREACH, "EACCES": syscall.EACCES, "EADDRINUSE": syscall.EADDRINUSE,
}

// try makes the calls of a step once and tells what is not as it must be.
func (s *stage) try(st step) error {
	switch st.verb {
	case "logged":
		return s.logged(st.args)
	case "portolan":
		at := slices.Index(st.args, "tells")
		return s.told(st.args[:at], st.args[at+1:])
	}
	probe := s.probes[st.who]
	if probe == nil {
		return fmt.Errorf("nobody is called %s", st.who)
	}
	addr := s.fill(st.target)
	if host, port, ok := strings.Cut(addr, "]:"); !ok && strings.Count(addr, ":") > 1 {
		return fmt.Errorf("write %s as [address]:port (%s, %s)", addr, host, port)
	}
	switch st.verb {
	case "reaches":
		return s.byXDP(st, addr, func() error { return reaches(probe, st.proto, addr, st.args) })
	case "mapped":
		return reaches(probe, st.proto, addr, st.args, world.Mapped())
	case "itself":
		own := netip.MustParseAddrPort(addr).Addr()
		return reaches(probe, st.proto, addr, st.args, world.From(netip.AddrPortFrom(own, 0).String()))
	case "shares":
		return s.byXDP(st, addr, func() error { return shares(probe, st.proto, addr, s.members(st.args)) })
	case "scatters":
		return scatters(probe, st.proto, addr)
	case "flow":
		return s.flow(st.who, st.proto, addr).answeredBy(st.args)
	case "sticks":
		return s.byXDP(st, addr, func() error { return sticks(probe, st.proto, addr) })
	case "sees":
		r := probe.Dial(st.proto, addr, world.Timeout(short))
		want := s.addrs[st.args[0]]
		if netip.MustParseAddrPort(addr).Addr().Is6() {
			want = s.addrs[st.args[0]+"_6"]
		}
		if r.Err() != nil || r.Seen.Addr().Unmap() != want {
			return fmt.Errorf("%v; %s sees %s, want %s", r.Err(), r.Backend, r.Seen, want)
		}
	case "named":
		r := probe.Dial(st.proto, addr, world.Timeout(short))
		if r.Err() != nil || netip.AddrPortFrom(r.Peer.Addr().Unmap(), r.Peer.Port()) != netip.MustParseAddrPort(addr) {
			return fmt.Errorf("%v; getpeername says %s", r.Err(), r.Peer)
		}
	case "refused":
		return s.denied(probe, st.proto, addr, short, syscall.ECONNREFUSED)
	case "silent":
		return s.denied(probe, st.proto, addr, brief, syscall.ETIMEDOUT)
	case "fails":
		return s.denied(probe, st.proto, addr, short, errnos[st.args[0]])
	}
	return nil
}

// negative are the steps in which nobody is reached. Of an address that is
// served a call may fail, too, by chance; so these must come true twice.
var negative = map[string]bool{"refused": true, "silent": true, "fails": true}

// denied makes five calls at once and tells whether all end with that error. To
// tell silence from a client that cannot hear, the process of the node "here"
// must answer the same client meanwhile.
func (s *stage) denied(probe *world.Probe, proto, addr string, limit time.Duration, want syscall.Errno) error {
	const calls = 5
	hammer, err := probe.Hammer(proto, addr, world.HammerConfig{Workers: calls, Count: calls, Options: []world.Option{world.Timeout(limit)}})
	if err != nil {
		return err
	}
	host := probe.Dial("tcp", fmt.Sprintf("%s:%d", s.addrs["here"], hostPort), world.Timeout(brief/2))
	report, err := hammer.Stop()
	others := slices.DeleteFunc(report.Failures, func(f world.Failure) bool { return f.Errno == want })
	if err = errors.Join(err, host.Err()); err != nil || want == 0 || len(report.Backends) > 0 || report.Total != calls || len(others) > 0 {
		return fmt.Errorf("%d calls, answered by %v, want %v, others end with %v; the node itself: %v", report.Total, report.Backends, want, others, err)
	}
	return nil
}

// reaches dials so often that an endpoint of four is missed once in a million
// runs.
func reaches(probe *world.Probe, proto, addr string, want []string, options ...world.Option) error {
	report, err := probe.DialMany(proto, addr, 12*len(want)+6, append(options, world.Timeout(short))...)
	if err != nil {
		return err
	}
	got := slices.Sorted(maps.Keys(report.Backends))
	if slices.Sort(want); report.Failed > 0 || !slices.Equal(got, want) {
		return fmt.Errorf("%d of %d failed, answers %v, want %v; first failure %+v", report.Failed, report.Total, report.Backends, want, report.Failures)
	}
	return nil
}

func sticks(probe *world.Probe, proto, addr string) error {
	report, err := probe.DialMany(proto, addr, 15, world.Timeout(short))
	if err == nil && (report.Failed > 0 || len(report.Backends) != 1) {
		err = fmt.Errorf("%d failed, answers %v", report.Failed, report.Backends)
	}
	return err
}

// shares makes many calls and tells whether the endpoints' shares differ by more
// than chance lets them: the bound on chi squared (of Laurent and Massart) is
// passed once in e^20 runs, by an endpoint that counts twice in all of them.
func shares(probe *world.Probe, proto, addr string, want []string) error {
	report, err := probe.DialMany(proto, addr, max(1800, 12*len(want)), world.Timeout(short))
	if err != nil {
		return err
	}
	free, each := float64(len(want)-1), float64(report.Total)/float64(len(want))
	bound, sum := free+2*math.Sqrt(20*free)+2*20, 0.0
	for _, name := range want {
		off := float64(report.Backends[name]) - each
		sum += off * off / each
	}
	got := slices.Sorted(maps.Keys(report.Backends))
	if slices.Sort(want); report.Failed > 0 || sum > bound || !slices.Equal(got, want) {
		return fmt.Errorf("%d of %d failed, %d endpoints of %d answer, chi squared is %.0f and should not pass %.0f; first failures %.3v",
			report.Failed, report.Total, len(got), len(want), sum, bound, report.Failures)
	}
	return nil
}

// scatters tells whether the source ports that an endpoint sees are a guess for
// those who do not know the secret: neither the client's, nor in a row, nor
// close together.
func scatters(probe *world.Probe, proto, addr string) error {
	const calls, ports = 100, 1 << 14 // those of --masquerade-ports
	var last, low, high, kept, near int
	low = math.MaxInt
	for i := range calls {
		r := probe.Dial(proto, addr, world.Timeout(short))
		if r.Err() != nil {
			return r.Err()
		}
		port := int(r.Seen.Port())
		low, high = min(low, port), max(high, port)
		if port == int(r.Local.Port()) {
			kept++
		}
		if step := port - last; i > 0 && -64 < step && step < 64 {
			near++
		}
		last = port
	}
	// One in a hundred is near the one before by chance, and the range is
	// covered but for a few hundredths.
	if kept > calls/10 || near > calls/10 || high-low < ports*3/4 {
		return fmt.Errorf("of %d ports %d were the client's own, %d near the one before; all within %d to %d", calls, kept, near, low, high)
	}
	return nil
}
