// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
)

// What a frontend does when it has no backend.
const (
	EmptyRefuse = "refuse"
	EmptyDrop   = "drop"
)

// Reason is why socket calls were not let through, and how often.
type Reason struct {
	Reason string
	Errno  string
	Count  uint64
}

// reasons by the number that programs count them under.
var reasons = map[bpf.LbReason][2]string{
	bpf.LbReasonREASON_NO_ENDPOINT:       {"no-endpoint", "ECONNREFUSED"},
	bpf.LbReasonREASON_NO_LOCAL_ENDPOINT: {"no-local-endpoint", "EHOSTUNREACH"},
	bpf.LbReasonREASON_NO_SUCH_PORT:      {"no-such-port", "ECONNREFUSED"},
	bpf.LbReasonREASON_NO_SERVICE:        {"no-service", "ENETUNREACH"},
	bpf.LbReasonREASON_SOURCE_RANGE:      {"source-range", "EACCES"},
	bpf.LbReasonREASON_NODEPORT_TAKEN:    {"nodeport-taken", "EADDRINUSE"},
	// Of packets: there is no caller to tell.
	bpf.LbReasonREASON_CLUSTER_IP_OUTSIDE: {"cluster-ip-outside", ""},
	bpf.LbReasonREASON_MASQUERADE_PORTS:   {"masquerade-ports", ""},
	bpf.LbReasonREASON_NO_ROUTE:           {"no-route", ""},
	bpf.LbReasonREASON_TTL:                {"ttl", ""},
	bpf.LbReasonREASON_TOO_BIG:            {"too-big", ""},
	bpf.LbReasonREASON_FRAGMENT:           {"fragment", ""},
	bpf.LbReasonREASON_MALFORMED:          {"malformed", ""},
	bpf.LbReasonREASON_SPOOFED:            {"spoofed", ""},
	bpf.LbReasonREASON_FLOW_TABLE_FULL:    {"flow-table-full", ""},
	bpf.LbReasonREASON_SCTP_PORT:          {"sctp-port", ""},
}

// Denied reads the counters of calls that were not let through.
func (s *Set) Denied() ([]Reason, error) {
	var out []Reason
	for n := bpf.LbReason(1); n < bpf.LbReasonREASON_MAX; n++ {
		var perCPU []uint64
		if err := s.all[Reasons].Lookup(uint32(n), &perCPU); err != nil {
			return nil, fmt.Errorf("read counter of %s: %w", reasons[n][0], err)
		}
		r := Reason{Reason: reasons[n][0], Errno: reasons[n][1]}
		for _, count := range perCPU {
			r.Count += count
		}
		out = append(out, r)
	}
	return out, nil
}

// Resolved is everything the tables say, with ids followed to what they stand
// for.
type Resolved struct {
	Frontends []Frontend
	// Owners are the addresses as such: AddressOurs, AddressElsewhere or
	// AddressPublished.
	Owners map[netip.Addr]uint32
	// NodeAddrs serve NodePorts; true: inside the node's own namespace only.
	NodeAddrs map[netip.Addr]bool
	// CIDRs: an address inside that has no owner is refused. Sorted.
	CIDRs []netip.Prefix
	// Backends counts those that may be used; Draining those of them that get
	// nobody new.
	Backends, Draining int
	// Unnamed are backends that may be used and that no range names, by id.
	// Draining ones are no mistake.
	Unnamed []Backend
	// Damage describes what contradicts itself.
	Damage []string
}

// Frontend is an entry of frontends4/6 with what it leads to.
type Frontend struct {
	Addr        netip.AddrPort
	Protocol    uint8
	ID          uint32
	Generation  uint32
	ServicePort uint32
	Name        ServiceName
	Affinity    uint32 // seconds
	Guarded     bool
	Sources     []netip.Prefix
	Internal    Range
	External    Range
}

// Range is what a range word leads to.
type Range struct {
	Base, Count uint32
	Flags       uint8
	Backends    []Backend
	Slots       []uint32 // by which each of Backends was found first
}

// Backend is an entry of backends4/6.
type Backend struct {
	ID          uint32
	Generation  uint32
	Addr        netip.AddrPort
	Protocol    uint8
	Flags       uint8
	ServicePort uint32
}

// ServiceName is whose a service port is.
type ServiceName struct {
	Namespace, Name, Port string
	Protocol, Family      uint8
	// Type is the Service's, as the agent's model counts.
	Type uint8
}

// Empty says what the range does without backends, or is empty itself.
func (r *Range) Empty() string {
	switch {
	case r.Count > 0:
		return ""
	case r.Flags&RangeRefuse != 0:
		return EmptyRefuse
	}
	return EmptyDrop
}

// resolver is Resolve at work.
type resolver struct {
	set     *Set
	out     Resolved
	names   map[uint32]ServiceName
	sources map[uint32][]netip.Prefix
	named   map[Backend]bool
}

// Resolve reads all tables of the agent. It takes no lock: while an agent
// writes, what changes at that moment may be reported as damage.
func (s *Set) Resolve() (*Resolved, error) {
	r := &resolver{set: s, out: Resolved{Owners: map[netip.Addr]uint32{}, NodeAddrs: map[netip.Addr]bool{}},
		names: map[uint32]ServiceName{}, sources: map[uint32][]netip.Prefix{}, named: map[Backend]bool{}}
	if err := errors.Join(r.readNames(), r.readSources(), r.readNodeAddrs()); err != nil {
		return nil, err
	}
	r.readFrontends()
	r.readCIDRs()
	r.readBackends()
	r.checkFilter()
	slices.SortFunc(r.out.Frontends, func(a, b Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol))
	})
	return &r.out, nil
}

func (r *resolver) damage(format string, args ...any) {
	r.out.Damage = append(r.out.Damage, fmt.Sprintf(format, args...))
}

func (r *resolver) readNames() error {
	var err error
	for id, v := range r.set.ServiceNames.All(&err) {
		r.names[id] = ServiceName{String(v.Namespace[:]), String(v.Name[:]), String(v.Port[:]), v.Proto, v.Family, v.Type}
	}
	return err
}

func (r *resolver) readSources() error {
	// Tries have no batch look-up of their own kind on every kernel: walk them.
	add := func(port uint32, p netip.Prefix) { r.sources[port] = append(r.sources[port], p) }
	var k4 bpf.LbSource4Key
	var k6 bpf.LbSource6Key
	var present uint32
	walk4 := r.set.all[Sources4].Iterate()
	for walk4.Next(&k4, &present) {
		add(k4.ServicePort, netip.PrefixFrom(FromAddr4(k4.Addr), int(k4.Prefixlen)-32))
	}
	walk6 := r.set.all[Sources6].Iterate()
	for walk6.Next(&k6, &present) {
		add(k6.ServicePort, netip.PrefixFrom(FromAddr16(k6.Addr), int(k6.Prefixlen)-32))
	}
	for _, list := range r.sources {
		slices.SortFunc(list, netip.Prefix.Compare)
	}
	return errors.Join(aborted(walk4), aborted(walk6))
}

func aborted(walk *ebpf.MapIterator) error {
	if err := walk.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read source ranges: %w", err)
	}
	return nil
}

func (r *resolver) readNodeAddrs() error {
	var err error
	for k, flags := range r.set.NodeAddrs4.All(&err) {
		r.out.NodeAddrs[FromAddr4(k)] = flags&NodeAddrHostOnly != 0
	}
	for k, flags := range r.set.NodeAddrs6.All(&err) {
		r.out.NodeAddrs[FromAddr16(k)] = flags&NodeAddrHostOnly != 0
	}
	return err
}

func (r *resolver) readCIDRs() {
	config := r.set.NodeConfig.At(0)
	active := &config.Cidrs[config.ActiveCidrs&1]
	if int(active.Count) > len(active.Cidrs) {
		r.damage("service CIDRs: %d of at most %d", active.Count, len(active.Cidrs))
	}
	for i := range min(int(active.Count), len(active.Cidrs)) {
		prefix, ok := fromCIDR(active.Cidrs[i])
		if !ok {
			r.damage("service CIDR %d: the mask of %s is none", i, FromAddr16(active.Cidrs[i].Addr))
			continue
		}
		r.out.CIDRs = append(r.out.CIDRs, prefix)
	}
	slices.SortFunc(r.out.CIDRs, netip.Prefix.Compare)
}

// fromCIDR is the inverse of CIDR; false when the mask is not a run of ones,
// or shorter than what makes an address an IPv4 one.
func fromCIDR(c bpf.LbCidr) (netip.Prefix, bool) {
	length, ended := 0, false
	for _, word := range c.Mask.W {
		ones := leadingOnes(word)
		if ended && ones > 0 || ones < 0 {
			return netip.Prefix{}, false
		}
		length, ended = length+ones, ended || ones < 32
	}
	addr := FromAddr16(c.Addr)
	if addr.Is4() {
		length -= 96
	}
	prefix := netip.PrefixFrom(addr, length)
	return prefix, prefix.IsValid()
}

// leadingOnes counts the ones of a mask word in network order, or returns -1
// when they are not all in front.
func leadingOnes(network uint32) int {
	word := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, network))
	ones := bits.LeadingZeros32(^word)
	if word<<ones != 0 {
		return -1
	}
	return ones
}

func (r *resolver) readFrontends() {
	for k, id := range r.set.Frontends4.All() {
		addr, proto := FrontendOf4(k)
		r.frontend(addr, proto, id)
	}
	for k, id := range r.set.Frontends6.All() {
		addr, proto := FrontendOf6(k)
		r.frontend(addr, proto, id)
	}
}

func (r *resolver) frontend(addr netip.AddrPort, proto uint8, id uint32) {
	if IsAddressOwner(id) {
		r.out.Owners[addr.Addr()] = id
		return
	}
	f := Frontend{Addr: addr, Protocol: proto, ID: id}
	if id >= r.set.FrontendState.Len() {
		r.damage("frontend %s: id %d is beyond the table", addr, id)
		return
	}
	state := r.set.FrontendState.Load(id)
	f.Generation, f.ServicePort, f.Affinity = state.Generation, state.ServicePort, state.AffinityTimeout
	name, ok := r.names[f.ServicePort]
	if !ok {
		r.damage("frontend %s: service port %d has no name", addr, f.ServicePort)
	}
	f.Name = name
	f.Internal = r.follow(&f, r.set.FrontendState.LoadWord(id, StateInternal))
	f.External = r.follow(&f, r.set.FrontendState.LoadWord(id, StateExternal))
	if f.Guarded = f.Internal.Flags&RangeGuarded != 0; f.Guarded {
		f.Sources = r.sources[f.ServicePort]
	}
	r.out.Frontends = append(r.out.Frontends, f)
}

func (r *resolver) follow(f *Frontend, word uint64) Range {
	var x Range
	x.Base, x.Count, x.Flags = SplitRangeWord(word)
	if uint64(x.Base)+uint64(x.Count) > uint64(r.set.Slots.Len()) {
		r.damage("frontend %s: slots %d to %d are beyond the table", f.Addr, x.Base, x.Base+x.Count)
		return x
	}
	seen := map[uint32]bool{} // a Maglev table names each backend many times
	for i := range x.Count {
		slot := r.set.Slots.Load(x.Base + i)
		if x.Flags&RangeMaglev != 0 && seen[slot.Backend] {
			continue
		}
		seen[slot.Backend] = true
		b, ok := r.backend(f.Addr.Addr().Is4(), slot.Backend)
		switch {
		case !ok:
			r.damage("frontend %s: slot %d names backend %d beyond the table", f.Addr, x.Base+i, slot.Backend)
			continue
		case b.Flags&BackendStateMask == 0:
			r.damage("frontend %s: slot %d names backend %d, which is dead", f.Addr, x.Base+i, slot.Backend)
		case b.Generation != slot.Generation:
			r.damage("frontend %s: slot %d names generation %d of backend %d, which has %d", f.Addr, x.Base+i, slot.Generation, slot.Backend, b.Generation)
		case b.ServicePort != f.ServicePort:
			r.damage("frontend %s: slot %d names backend %d of service port %d, not %d", f.Addr, x.Base+i, slot.Backend, b.ServicePort, f.ServicePort)
		}
		x.Backends, x.Slots = append(x.Backends, b), append(x.Slots, x.Base+i)
		r.named[b] = true
	}
	return x
}

func (r *resolver) backend(v4 bool, id uint32) (Backend, bool) {
	if v4 {
		if id >= r.set.Backends4.Len() {
			return Backend{}, false
		}
		b := r.set.Backends4.Load(id)
		return Backend{id, b.Generation, netip.AddrPortFrom(FromAddr4(b.Addr), Port16(b.Port)), b.Proto, b.Flags, b.ServicePort}, true
	}
	if id >= r.set.Backends6.Len() {
		return Backend{}, false
	}
	b := r.set.Backends6.Load(id)
	return Backend{id, b.Generation, netip.AddrPortFrom(FromAddr16(b.Addr), Port16(b.Port)), b.Proto, b.Flags, b.ServicePort}, true
}

// checkFilter finds addresses that programs do not even look up.
func (r *resolver) checkFilter() {
	missing := map[netip.Addr]bool{}
	check := func(addr netip.Addr) {
		bit := FilterBit(addr, r.set.VIPFilter.Len()*64)
		if !addr.IsUnspecified() && r.set.VIPFilter.LoadWord(bit/64, 0)>>(bit%64)&1 == 0 {
			missing[addr] = true
		}
	}
	for i := range r.out.Frontends {
		check(r.out.Frontends[i].Addr.Addr())
	}
	for addr := range r.out.Owners {
		check(addr)
	}
	for addr := range r.out.NodeAddrs {
		check(addr)
	}
	for _, addr := range slices.SortedFunc(maps.Keys(missing), netip.Addr.Compare) {
		r.damage("address %s: its bit in vip_filter is clear, so it is not looked up", addr)
	}
}

func (r *resolver) readBackends() {
	for _, family := range []struct {
		v4 bool
		n  uint32
	}{{true, r.set.Backends4.Len()}, {false, r.set.Backends6.Len()}} {
		for id := range family.n {
			b, _ := r.backend(family.v4, id)
			if b.Flags&BackendStateMask == 0 {
				continue
			}
			r.out.Backends++
			if b.Flags&BackendStateMask == BackendDraining {
				r.out.Draining++
			}
			if !r.named[b] {
				r.out.Unnamed = append(r.out.Unnamed, b)
			}
		}
	}
}
