// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"portolan.dev/portolan/bpf"
)

// Words of the entries that are published by one store.
const (
	// StateExternal and StateInternal are the range words of a frontend.
	StateExternal = 0
	StateInternal = 1
	// Backend4Flags and Backend6Flags hold a backend's port, protocol, flags
	// (and, for IPv6, generation).
	Backend4Flags = 0
	Backend6Flags = 2
)

// Offsets of fields that are published alone.
const (
	NodeConfigCIDRs  = unsafe.Offsetof(bpf.LbNodeConfig{}.ActiveCidrs)
	NodeConfigPorts  = unsafe.Offsetof(bpf.LbNodeConfig{}.NodeportMin)
	nodeConfigLayout = unsafe.Offsetof(bpf.LbNodeConfig{}.Layout)

	WireConfigRoutes = unsafe.Offsetof(bpf.LbWireConfig{}.RouteGeneration)
	WireConfigInside = unsafe.Offsetof(bpf.LbWireConfig{}.ActiveInside)
)

// NoNodePorts is the range of NodePorts, lowest and highest, when there is none.
const NoNodePorts = uint32(1)

// Flags of a range word and of a backend, and the states of a backend, by
// shorter names than the generated ones.
const (
	RangeRefuse   = uint8(bpf.LbRangeFlagsRANGE_REFUSE)
	RangeAffinity = uint8(bpf.LbRangeFlagsRANGE_AFFINITY)
	RangeGuarded  = uint8(bpf.LbRangeFlagsRANGE_GUARDED)
	RangeLocal    = uint8(bpf.LbRangeFlagsRANGE_LOCAL)
	RangeInside   = uint8(bpf.LbRangeFlagsRANGE_INSIDE)
	RangeMaglev   = uint8(bpf.LbRangeFlagsRANGE_MAGLEV)
	RangeDSR      = uint8(bpf.LbRangeFlagsRANGE_DSR)

	BackendActive    = uint8(bpf.LbBackendStateBACKEND_ACTIVE)
	BackendDraining  = uint8(bpf.LbBackendStateBACKEND_DRAINING)
	BackendStateMask = BackendActive | BackendDraining
	BackendInCluster = uint8(bpf.LbBackendFlagsBACKEND_IN_CLUSTER)
	BackendInLocal   = uint8(bpf.LbBackendFlagsBACKEND_IN_LOCAL)
	BackendOnNode    = uint8(bpf.LbBackendFlagsBACKEND_ON_NODE)
	BackendNodeless  = uint8(bpf.LbBackendFlagsBACKEND_NODELESS)

	AddressOurs      = uint32(bpf.LbAddressOwnerADDRESS_OURS)
	AddressElsewhere = uint32(bpf.LbAddressOwnerADDRESS_ELSEWHERE)
	AddressPublished = uint32(bpf.LbAddressOwnerADDRESS_PUBLISHED)

	DeviceXDPTarget    = uint32(bpf.LbDeviceFlagsDEVICE_XDP_TARGET)
	DeviceNoLinkHeader = uint32(bpf.LbDeviceFlagsDEVICE_NO_LINK_HEADER)
	DeviceInward       = uint32(bpf.LbDeviceFlagsDEVICE_INWARD)

	NodeAddrHostOnly = uint32(bpf.LbNodeAddrFlagsNODE_ADDR_HOST_ONLY)
)

// IsAddressOwner tells the values of the frontends tables that are no frontend
// id but say whose an address is.
func IsAddressOwner(id uint32) bool {
	return id == AddressOurs || id == AddressElsewhere || id == AddressPublished
}

// OwnerName names such a value.
func OwnerName(id uint32) string {
	switch id {
	case AddressOurs:
		return "ours"
	case AddressElsewhere:
		return "elsewhere"
	case AddressPublished:
		return "published"
	}
	return fmt.Sprintf("unknown (%#x)", id)
}

// MaxRange is the number of backends that a range word can count.
const MaxRange = 1<<24 - 1

// RangeWord packs a range: base:32, count:24, flags:8 from the least
// significant bit up (bpf/include/types.h).
func RangeWord(base, count uint32, flags uint8) uint64 {
	return uint64(base) | uint64(count)<<32 | uint64(flags)<<56
}

// SplitRangeWord unpacks a range word.
func SplitRangeWord(w uint64) (base, count uint32, flags uint8) {
	return uint32(w), uint32(w>>32) & MaxRange, uint8(w >> 56)
}

// SlotWord packs a slot.
func SlotWord(backend, generation uint32) uint64 {
	return uint64(backend) | uint64(generation)<<32
}

// SplitSlotWord unpacks a slot.
func SplitSlotWord(w uint64) (backend, generation uint32) { return uint32(w), uint32(w >> 32) }

// Addr4 is an IPv4 address as tables hold it: network order in memory.
func Addr4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// FromAddr4 is the reverse of Addr4.
func FromAddr4(v uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// Addr16 is an address as tables hold it in 16 bytes: an IPv4 one in its
// mapped form.
func Addr16(a netip.Addr) bpf.LbAddress {
	b := a.As16()
	var out bpf.LbAddress
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// FromAddr16 is the reverse of Addr16; mapped addresses come back as IPv4.
func FromAddr16(a bpf.LbAddress) netip.Addr {
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// Port16 turns a port between host and network order.
func Port16(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// Frontend4Key is the key of an IPv4 frontend.
func Frontend4Key(a netip.AddrPort, proto uint8) bpf.LbFrontend4Key {
	return bpf.LbFrontend4Key{Addr: Addr4(a.Addr()), Port: Port16(a.Port()), Proto: proto}
}

// Frontend6Key is the key of an IPv6 frontend.
func Frontend6Key(a netip.AddrPort, proto uint8) bpf.LbFrontend6Key {
	return bpf.LbFrontend6Key{Addr: Addr16(a.Addr()), Port: Port16(a.Port()), Proto: proto}
}

// FrontendOf4 and FrontendOf6 read keys back.
func FrontendOf4(k bpf.LbFrontend4Key) (netip.AddrPort, uint8) {
	return netip.AddrPortFrom(FromAddr4(k.Addr), Port16(k.Port)), k.Proto
}

// FrontendOf6 reads an IPv6 frontend's key back.
func FrontendOf6(k bpf.LbFrontend6Key) (netip.AddrPort, uint8) {
	return netip.AddrPortFrom(FromAddr16(k.Addr), Port16(k.Port)), k.Proto
}

// CIDR is a service CIDR as programs compare it.
func CIDR(p netip.Prefix) bpf.LbCidr {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	var mask [16]byte
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return bpf.LbCidr{Addr: Addr16(p.Masked().Addr()), Mask: rawAddr16(mask)}
}

// Cover is what all addresses in a set of CIDRs begin with; of IPv6 ones, in
// their first half. Values are as programs compare them (service_prefix4 and
// its like in bpf/include/config.h).
type Cover struct {
	prefix4, mask4 uint32
	prefix6, mask6 uint64
	wide4, wide6   bool // of several CIDRs
}

// CoverOf returns the longest such beginning. A family without a CIDR gets a
// prefix that no address has.
func CoverOf(set *bpf.LbCidrSet) Cover {
	cover := Cover{prefix4: 1, prefix6: 1}
	var of [2]netip.Prefix
	wide := [2]*bool{&cover.wide4, &cover.wide6}
	for _, c := range set.Cidrs[:min(int(set.Count), len(set.Cidrs))] {
		p, ok := fromCIDR(c)
		if !ok {
			continue
		}
		i := 0
		if p.Addr().Is6() {
			i = 1
		}
		if !of[i].IsValid() {
			of[i] = p
		} else {
			*wide[i] = true
		}
		for of[i].Bits() > 0 && !(of[i].Contains(p.Addr()) && of[i].Bits() <= p.Bits()) {
			of[i] = netip.PrefixFrom(of[i].Addr(), of[i].Bits()-1).Masked()
		}
	}
	if p := of[0]; p.IsValid() {
		c := CIDR(p)
		cover.prefix4, cover.mask4 = c.Addr.W[3], c.Mask.W[3]
	}
	if p := of[1]; p.IsValid() {
		c := CIDR(p)
		cover.prefix6 = uint64(c.Addr.W[0]) | uint64(c.Addr.W[1])<<32
		cover.mask6 = uint64(c.Mask.W[0]) | uint64(c.Mask.W[1])<<32
	}
	return cover
}

func rawAddr16(b [16]byte) bpf.LbAddress {
	var out bpf.LbAddress
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// Source4Key and Source6Key are the keys of a source range of a service port.
func Source4Key(servicePort uint32, p netip.Prefix) bpf.LbSource4Key {
	return bpf.LbSource4Key{Prefixlen: uint32(32 + p.Bits()), ServicePort: servicePort, Addr: Addr4(p.Masked().Addr())}
}

// Source6Key is the key of an IPv6 source range of a service port.
func Source6Key(servicePort uint32, p netip.Prefix) bpf.LbSource6Key {
	return bpf.LbSource6Key{Prefixlen: uint32(32 + p.Bits()), ServicePort: servicePort, Addr: Addr16(p.Masked().Addr())}
}

// AffinityClient is the address of a client that is known by one.
func AffinityClient(k bpf.LbAffinityKey) netip.Addr {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], k.Client[0])
	binary.NativeEndian.PutUint64(b[8:], k.Client[1])
	return netip.AddrFrom16(b).Unmap()
}

// TunnelEndKey is the key of an endpoint of this node for a service port, or,
// with service port 0, for any.
func TunnelEndKey(endpoint netip.Addr, servicePort uint32) bpf.LbTunnelEndKey {
	return bpf.LbTunnelEndKey{Addr: Addr16(endpoint), ServicePort: servicePort}
}

// FilterBit is the bit of vip_filter that an address sets, of bits in all (a
// power of two); the same computation as may_be_vip in bpf/include/lookup.h.
func FilterBit(a netip.Addr, bits uint32) uint32 {
	return filterHash(a) >> FilterShift(bits)
}

// FilterShift is the constant vip_filter_shift for a filter of that many bits.
func FilterShift(bits uint32) uint32 {
	shift := uint32(32)
	for b := bits; b > 1; b >>= 1 {
		shift--
	}
	return shift
}

func filterHash(a netip.Addr) uint32 {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:]) * 0x9e3779b1
	}
	b := a.As16()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	return uint32(((high*0xff51afd7ed558ccd ^ low) * 0x9e3779b97f4a7c15) >> 32)
}

// String returns the text of a NUL-terminated field.
func String(field []uint8) string {
	for i, c := range field {
		if c == 0 {
			return string(field[:i])
		}
	}
	return string(field)
}

// Backend4Word is the published word of an IPv4 backend (Backend4Flags).
func Backend4Word(a netip.AddrPort, proto, flags uint8) uint64 {
	return uint64(Addr4(a.Addr())) | uint64(Port16(a.Port()))<<32 | uint64(proto)<<48 | uint64(flags)<<56
}

// Backend6Word is the published word of an IPv6 backend (Backend6Flags).
func Backend6Word(a netip.AddrPort, proto, flags uint8, generation uint32) uint64 {
	return uint64(Port16(a.Port())) | uint64(proto)<<16 | uint64(flags)<<24 | uint64(generation)<<32
}

// PutString copies s into a NUL-terminated field, cut to what fits.
func PutString(field []uint8, s string) {
	n := copy(field[:len(field)-1], s)
	clear(field[n:])
}
