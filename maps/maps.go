// SPDX-License-Identifier: Apache-2.0

// Package maps is the typed Go view of the BPF tables: one generic core for
// hash tables, one for arrays in mapped memory, conversions between netip and
// the layouts of package bpf, and the grace period after which freed entries
// may be used again.
//
// It knows tables and no Kubernetes: it imports package bpf and the eBPF
// library only. The invariant it guards is that nobody else touches a layout's
// bytes or its byte order.
package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"github.com/cilium/ebpf"

	"portolan.dev/portolan/bpf"
)

// LayoutVersion is the version of the tables' layouts that this build reads
// and writes, as bpf/include/types.h says it.
const LayoutVersion = 3

// Names of the tables, as they are pinned and as programs declare them.
const (
	Frontends4    = "frontends4"
	Frontends6    = "frontends6"
	FrontendState = "frontend_state"
	Slots         = "slots"
	Backends4     = "backends4"
	Backends6     = "backends6"
	VIPFilter     = "vip_filter"
	NodeConfig    = "node_config"
	NodeAddrs4    = "node_addrs4"
	NodeAddrs6    = "node_addrs6"
	Sources4      = "sources4"
	Sources6      = "sources6"
	Affinity      = "affinity"
	SockPeer      = "sock_peer"
	SockRev       = "sock_rev"
	Reasons       = "reasons"
	ServiceNames  = "service_names"
	Flows4        = "flows4"
	Flows6        = "flows6"
	Newcomers4    = "newcomers4"
	Newcomers6    = "newcomers6"
	Fragments     = "fragments"
	Devices       = "devices"
	TunnelEnds    = "tunnel_ends"
	WireConfig    = "wire_config"
	NextHops4     = "next_hops4"
	NextHops6     = "next_hops6"
	Refusals      = "refusals"
)

// ErrLayout means that pinned tables are of another layout than this build's.
var ErrLayout = errors.New("tables have another layout")

// ErrNotPinned means that there are no tables at the place looked at.
var ErrNotPinned = errors.New("no tables are pinned")

// Sizes are the capacities of the tables that grow, in entries.
type Sizes struct {
	Frontends4, Frontends6 uint32
	FrontendState          uint32
	Slots                  uint32
	Backends4, Backends6   uint32
	FilterBits             uint32 // a power of two, at least 64
	NodeAddrs4, NodeAddrs6 uint32
	ServiceNames           uint32
}

// elements is the max_entries of the kernel's table that holds so many.
func elements(name string, entries uint32) uint32 {
	if name == Frontends4 || name == Frontends6 {
		return frontendElements(entries)
	}
	return entries
}

func (s Sizes) byName() map[string]uint32 {
	return map[string]uint32{
		Frontends4: s.Frontends4, Frontends6: s.Frontends6,
		FrontendState: s.FrontendState, Slots: s.Slots,
		Backends4: s.Backends4, Backends6: s.Backends6,
		VIPFilter:  s.FilterBits / 64,
		NodeAddrs4: s.NodeAddrs4, NodeAddrs6: s.NodeAddrs6,
		ServiceNames: s.ServiceNames,
		// Caches by backend id: larger ones begin empty.
		NextHops4: s.Backends4, NextHops6: s.Backends6,
	}
}

// Set is all tables of one dataplane, open. Its fields may be read at any
// time; who writes is said in bpf/include/maps.h: one agent, or the programs.
type Set struct {
	all map[string]*ebpf.Map

	Frontends4    *Frontends[bpf.LbFrontend4Key]
	Frontends6    *Frontends[bpf.LbFrontend6Key]
	FrontendState *Array[bpf.LbFrontendState]
	Slots         *Array[bpf.LbSlot]
	Backends4     *Array[bpf.LbBackend4]
	Backends6     *Array[bpf.LbBackend6]
	VIPFilter     *Array[uint64]
	NodeConfig    *Array[bpf.LbNodeConfig]
	NodeAddrs4    Hash[uint32, uint32]
	NodeAddrs6    Hash[bpf.LbAddress, uint32]
	Sources4      Hash[bpf.LbSource4Key, uint32]
	Sources6      Hash[bpf.LbSource6Key, uint32]
	Affinity      Hash[bpf.LbAffinityKey, bpf.LbAffinity]
	SockRev       Hash[bpf.LbSockRevKey, bpf.LbSockPeer]
	ServiceNames  Hash[uint32, bpf.LbServiceName]
	WireConfig    *Array[bpf.LbWireConfig]
	Devices       Hash[uint32, bpf.LbDevice]
	TunnelEnds    Hash[bpf.LbTunnelEndKey, uint32]
	Flows4        Hash[bpf.LbFlow4Key, bpf.LbFlow4]
	Flows6        Hash[bpf.LbFlow6Key, bpf.LbFlow6]
	Refusals      Hash[bpf.LbRefusalKey, uint64]
}

// Specs returns the declarations of all tables with the capacities of s; a
// capacity of 0 leaves the smallest one.
func Specs(s Sizes) (map[string]*ebpf.MapSpec, error) {
	spec, err := bpf.LoadTables()
	if err != nil {
		return nil, fmt.Errorf("read table declarations: %w", err)
	}
	for name, n := range s.byName() {
		if n > 0 {
			spec.Maps[name].MaxEntries = elements(name, n)
		}
	}
	return spec.Maps, nil
}

// OpenPinned opens the tables pinned in dir, for reading only unless writable.
// It returns ErrNotPinned when there are none, and ErrLayout, naming the table
// and what differs, when they are not what this build reads.
func OpenPinned(dir string, writable bool) (*Set, error) {
	specs, err := Specs(Sizes{})
	if err != nil {
		return nil, err
	}
	all := make(map[string]*ebpf.Map)
	for name, spec := range specs {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			closeAll(all)
			return nil, missing(dir, name, len(all))
		}
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("open pinned table %s: %w", name, err)
		}
		all[name] = m
		if err := compatible(name, spec, m); err != nil {
			closeAll(all)
			return nil, err
		}
	}
	set, err := newSet(all, writable)
	if err != nil {
		return nil, err
	}
	if v := set.NodeConfig.Load(0).Layout; v != LayoutVersion {
		set.Close()
		return nil, fmt.Errorf("%w: version %d, this build has %d", ErrLayout, v, LayoutVersion)
	}
	return set, nil
}

// missing tells an empty directory from one that lacks a table.
func missing(dir, name string, opened int) error {
	entries, err := os.ReadDir(dir)
	if opened == 0 && (err != nil || len(entries) == 0) {
		return ErrNotPinned
	}
	return fmt.Errorf("%w: table %s is missing in %s", ErrLayout, name, dir)
}

func compatible(name string, want *ebpf.MapSpec, got *ebpf.Map) error {
	if got.Type() != want.Type || got.KeySize() != want.KeySize || got.ValueSize() != want.ValueSize {
		return fmt.Errorf("%w: table %s is %v with keys of %d and values of %d bytes, this build has %v with %d and %d",
			ErrLayout, name, got.Type(), got.KeySize(), got.ValueSize(), want.Type, want.KeySize, want.ValueSize)
	}
	if got.Flags() != want.Flags {
		return fmt.Errorf("%w: table %s has flags %#x, this build has %#x", ErrLayout, name, got.Flags(), want.Flags)
	}
	return nil
}

func newSet(all map[string]*ebpf.Map, writable bool) (*Set, error) {
	s := &Set{
		all:          all,
		NodeAddrs4:   Hash[uint32, uint32]{all[NodeAddrs4]},
		NodeAddrs6:   Hash[bpf.LbAddress, uint32]{all[NodeAddrs6]},
		Sources4:     Hash[bpf.LbSource4Key, uint32]{all[Sources4]},
		Sources6:     Hash[bpf.LbSource6Key, uint32]{all[Sources6]},
		Affinity:     Hash[bpf.LbAffinityKey, bpf.LbAffinity]{all[Affinity]},
		SockRev:      Hash[bpf.LbSockRevKey, bpf.LbSockPeer]{all[SockRev]},
		ServiceNames: Hash[uint32, bpf.LbServiceName]{all[ServiceNames]},
		Devices:      Hash[uint32, bpf.LbDevice]{all[Devices]},
		TunnelEnds:   Hash[bpf.LbTunnelEndKey, uint32]{all[TunnelEnds]},
		Flows4:       Hash[bpf.LbFlow4Key, bpf.LbFlow4]{all[Flows4]},
		Flows6:       Hash[bpf.LbFlow6Key, bpf.LbFlow6]{all[Flows6]},
		Refusals:     Hash[bpf.LbRefusalKey, uint64]{all[Refusals]},
	}
	var errs [9]error
	s.FrontendState, errs[0] = mapArray[bpf.LbFrontendState](all[FrontendState], writable)
	s.Slots, errs[1] = mapArray[bpf.LbSlot](all[Slots], writable)
	s.Backends4, errs[2] = mapArray[bpf.LbBackend4](all[Backends4], writable)
	s.Backends6, errs[3] = mapArray[bpf.LbBackend6](all[Backends6], writable)
	s.VIPFilter, errs[4] = mapArray[uint64](all[VIPFilter], writable)
	s.NodeConfig, errs[5] = mapArray[bpf.LbNodeConfig](all[NodeConfig], writable)
	s.WireConfig, errs[6] = mapArray[bpf.LbWireConfig](all[WireConfig], writable)
	s.Frontends4, errs[7] = mapFrontends[bpf.LbFrontend4Bucket](all[Frontends4], &layout4, writable)
	s.Frontends6, errs[8] = mapFrontends[bpf.LbFrontend6Bucket](all[Frontends6], &layout6, writable)
	if err := errors.Join(errs[:]...); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// SetConstants tells programs, before they are loaded, what they have to know
// of these tables: the variables of bpf/include/config.h that they use. They
// have to be loaded anew for a grown set, and for service CIDRs with another
// Cover.
func (s *Set) SetConstants(spec *ebpf.CollectionSpec) error {
	config := s.NodeConfig.At(0)
	cover := CoverOf(&config.Cidrs[config.ActiveCidrs&1])
	for name, value := range map[string]any{
		"service_prefix4":       cover.prefix4,
		"service_mask4":         cover.mask4,
		"service_prefix6":       cover.prefix6,
		"service_mask6":         cover.mask6,
		"service_wide4":         cover.wide4,
		"service_wide6":         cover.wide6,
		"vip_filter_shift":      FilterShift(s.VIPFilter.Len() * 64),
		"frontends4_multiplier": s.Frontends4.multiplier,
		"frontends6_multiplier": s.Frontends6.multiplier,
		"frontends4_shift":      uint32(s.Frontends4.shift),
		"frontends6_shift":      uint32(s.Frontends6.shift),
	} {
		if v := spec.Variables[name]; v != nil {
			if err := v.Set(value); err != nil {
				return fmt.Errorf("set constant %s: %w", name, err)
			}
		}
	}
	return nil
}

// Map returns the table of that name, or nil.
func (s *Set) Map(name string) *ebpf.Map { return s.all[name] }

// All returns the tables by name, to load programs against. The map is a copy.
func (s *Set) All() map[string]*ebpf.Map {
	out := make(map[string]*ebpf.Map, len(s.all))
	for name, m := range s.all {
		out[name] = m
	}
	return out
}

// Names returns the names of all tables, sorted.
func (s *Set) Names() []string {
	names := make([]string, 0, len(s.all))
	for name := range s.all {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Pin pins every table in dir, replacing other tables' pins one by one by a
// rename, so that a pin is never missing.
func (s *Set) Pin(dir string) error {
	for name, m := range s.all {
		if err := pin(m, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func pin(m *ebpf.Map, path string) error {
	// A dot is not allowed in names on bpffs.
	tmp := path + "_new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	// A map remembers where it was pinned, and would move that pin.
	again, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin table at %s: %w", tmp, err)
	}
	defer again.Close()
	if err := again.Pin(tmp); err != nil {
		return fmt.Errorf("pin table at %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("publish pin: %w", err)
	}
	return nil
}

// Close closes the tables; pins and programs keep them alive.
func (s *Set) Close() {
	for _, a := range []interface{ unmap() }{s.Frontends4, s.Frontends6, s.FrontendState, s.Slots, s.Backends4, s.Backends6, s.VIPFilter, s.NodeConfig, s.WireConfig} {
		a.unmap()
	}
	closeAll(s.all)
}

func closeAll(all map[string]*ebpf.Map) {
	for _, m := range all {
		m.Close()
	}
}
