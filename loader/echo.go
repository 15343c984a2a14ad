// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/maps"
)

// SelfTest is what programs can be tried on without any trace: nothing is sent,
// no flow is written.
type SelfTest struct {
	// Published are load balancer or external addresses that no node has. The
	// wire programs answer an echo request to one.
	Published []netip.Addr
	// Datagram are UDP frontends with endpoints. A connect to one is
	// translated, and sends nothing.
	Datagram []netip.AddrPort
}

func (l *Loader) run(test SelfTest) []Fault {
	var out []Fault
	for v, programs := range l.wire {
		for _, addr := range test.Published {
			if err := l.echoFault(v, programs, addr); err != nil {
				out = append(out, Fault{familyOf(addr), err.Error()})
			}
		}
	}
	for _, at := range test.Datagram {
		if err := l.connectFault(at); err != nil {
			out = append(out, Fault{familyOf(at.Addr()), err.Error()})
		}
	}
	return out
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// Verdicts of a packet that is sent back where it came from.
const (
	tcRedirect = 7 // TC_ACT_REDIRECT
	xdpTx      = 3 // XDP_TX
)

// echoFault runs an echo request to a published address through the programs.
// Nobody sees it but them.
func (l *Loader) echoFault(v variant, programs *wirePrograms, addr netip.Addr) error {
	if !v.linkHeader {
		return nil // a test run makes Ethernet frames only
	}
	published, err := l.isPublished(addr)
	if err != nil {
		return err
	}
	if !published {
		return nil // it is more than that by now
	}
	for _, x := range []struct {
		hook    string
		program *ebpf.Program
		want    uint32
	}{{"tc ingress", programs.sides[0], tcRedirect}, {"XDP", programs.xdp, xdpTx}} {
		if x.program == nil {
			continue
		}
		frame := echoRequest(addr)
		got, err := x.program.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)})
		// A test that cannot be run tells nothing.
		if err == nil && got != x.want {
			return fmt.Errorf("self-test of %s: an echo request to the load balancer address %s got verdict %d, not %d: the program does not find it in its tables; restart the agent", x.hook, addr, got, x.want)
		}
	}
	return nil
}

// isPublished tells whether the tables say of an address that it is published
// and nothing else.
func (l *Loader) isPublished(addr netip.Addr) (bool, error) {
	var owner uint32
	var found bool
	at := netip.AddrPortFrom(addr, 0)
	if addr.Is4() {
		owner, found = l.tables.Frontends4.Get(maps.Frontend4Key(at, 0))
	} else {
		owner, found = l.tables.Frontends6.Get(maps.Frontend6Key(at, 0))
	}
	if !found {
		return false, fmt.Errorf("self-test: the load balancer address %s is not among the frontends; restart the agent to have them written anew", addr)
	}
	// Echo requests are answered without a look at the filter.
	bit := maps.FilterBit(addr, l.tables.VIPFilter.Len()*64)
	if l.tables.VIPFilter.LoadWord(bit/64, 0)&(1<<(bit%64)) == 0 {
		return false, fmt.Errorf("self-test: vip_filter lacks the load balancer address %s; restart the agent to have it written anew", addr)
	}
	return owner == maps.AddressPublished, nil
}

// echoRequest is a frame for the programs: from an address of a documentation
// block, to MAC address zero, which is the loopback device's that a test run
// pretends to be.
func echoRequest(to netip.Addr) []byte {
	frame := make([]byte, 12, 14+40+16)
	icmp := []byte{8, 0, 0, 0, 0x70, 0x6f, 0, 1, 'p', 'o', 'r', 't', 'o', 'l', 'a', 'n'}
	if to.Is4() {
		from := netip.AddrFrom4([4]byte{192, 0, 2, 1}).As4()
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
		ip := []byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 0, 0x40, 0, 64, unix.IPPROTO_ICMP, 0, 0}
		ip = append(append(ip, from[:]...), to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))
		binary.BigEndian.PutUint16(icmp[2:], checksum(0, icmp))
		return append(append(frame, ip...), icmp...)
	}
	icmp[0] = 128
	from := netip.MustParseAddr("2001:db8::1").As16()
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
	ip := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 64}
	ip = append(append(ip, from[:]...), to.AsSlice()...)
	pseudo := uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo, append(ip[8:40:40], icmp...)))
	return append(append(frame, ip...), icmp...)
}

// checksum is the Internet checksum of an even number of bytes.
func checksum(sum uint32, data []byte) uint16 {
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
