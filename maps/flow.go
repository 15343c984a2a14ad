// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"iter"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/bpf"
)

// Flow is one direction of a connection that the wire programs translate.
type Flow struct {
	Protocol uint8
	// From and To are of the packet as it comes, NewFrom and NewTo as it goes
	// on; of a tunnelled one they are the tunnel's ends and the ports say
	// nothing.
	From, To, NewFrom, NewTo netip.AddrPort
	// Action and State in words: "forward", "established".
	Action, State string
	Frontend      uint32
	Backend       uint32
	// Idle is how long ago a packet came, to about a second.
	Idle time.Duration
}

var flowActions = map[bpf.LbFlowAction]string{
	bpf.LbFlowActionFLOW_DELIVER: "deliver", bpf.LbFlowActionFLOW_FORWARD: "forward", bpf.LbFlowActionFLOW_ANSWER: "answer",
	bpf.LbFlowActionFLOW_RETURN: "return", bpf.LbFlowActionFLOW_TUNNEL: "tunnel",
}

var flowStates = map[bpf.LbFlowState]string{
	bpf.LbFlowStateFLOW_NEW: "new", bpf.LbFlowStateFLOW_ESTABLISHED: "established", bpf.LbFlowStateFLOW_CLOSING: "closing",
	bpf.LbFlowStateFLOW_RESET: "reset", bpf.LbFlowStateFLOW_FIN_SENT: "half-closed", bpf.LbFlowStateFLOW_FIN_RECEIVED: "half-closed",
}

// flowClock is the clock of Flow.LastSeen: units of 2^30 ns since boot.
func flowClock() (uint32, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return uint32(uint64(ts.Nano()) >> 30), nil
}

func flowOf(f *bpf.LbFlow, now uint32) Flow {
	idle := time.Duration(now-f.LastSeen) << 30
	if int32(now-f.LastSeen) < 0 {
		idle = 0 // a packet came since the clock was read
	}
	return Flow{
		Action: flowActions[bpf.LbFlowAction(f.Action)], State: flowStates[bpf.LbFlowState(f.State)],
		Frontend: f.Frontend, Backend: f.Backend, Idle: idle.Round(time.Second),
	}
}

// Flows yields the established flows of both families while programs go on;
// err is set when reading ends early. Flows that have not proven themselves
// (newcomers) are not among them.
func (s *Set) Flows(err *error) iter.Seq[Flow] {
	return func(yield func(Flow) bool) {
		now, failed := flowClock()
		if *err = failed; failed != nil {
			return
		}
		for k, v := range s.Flows4.All(err) {
			f := flowOf(&v.Flow, now)
			f.Protocol = k.Proto
			f.From, f.To = netip.AddrPortFrom(FromAddr4(k.Src), Port16(k.Sport)), netip.AddrPortFrom(FromAddr4(k.Dst), Port16(k.Dport))
			f.NewFrom, f.NewTo = netip.AddrPortFrom(FromAddr4(v.Src), Port16(v.Flow.Sport)), netip.AddrPortFrom(FromAddr4(v.Dst), Port16(v.Flow.Dport))
			if !yield(f) {
				return
			}
		}
		if *err != nil {
			return
		}
		for k, v := range s.Flows6.All(err) {
			f := flowOf(&v.Flow, now)
			f.Protocol = k.Proto
			f.From, f.To = netip.AddrPortFrom(FromAddr16(k.Src), Port16(k.Sport)), netip.AddrPortFrom(FromAddr16(k.Dst), Port16(k.Dport))
			f.NewFrom, f.NewTo = netip.AddrPortFrom(FromAddr16(v.Src), Port16(v.Flow.Sport)), netip.AddrPortFrom(FromAddr16(v.Dst), Port16(v.Flow.Dport))
			if !yield(f) {
				return
			}
		}
	}
}

// Refusal counts packets that were not served, by what they were for.
type Refusal struct {
	Reason string
	// Frontend and Backend are ids; Nobody stands for none.
	Frontend, Backend uint32
	Packets           uint64
}

// Nobody is the id of no frontend and no backend.
const Nobody = ^uint32(0)

// Refused reads the refusals. A table of the least recently used: what has not
// happened for long may be missing.
func (s *Set) Refused() ([]Refusal, error) {
	var out []Refusal
	var err error
	for k, n := range s.Refusals.All(&err) {
		out = append(out, Refusal{reasons[bpf.LbReason(k.Reason)][0], k.Frontend, k.Backend, n})
	}
	if err != nil {
		return nil, fmt.Errorf("read refusals: %w", err)
	}
	return out, nil
}
