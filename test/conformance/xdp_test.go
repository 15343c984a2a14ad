// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/test/world"
)

// destination is an address as in IPv6 and a port, as packets have them.
type destination struct {
	addr [16]byte
	port [2]byte
	_    [2]byte
}

func destinationOf(text string) destination {
	at := netip.MustParseAddrPort(text)
	return destination{addr: at.Addr().As16(), port: [2]byte{byte(at.Port() >> 8), byte(at.Port())}}
}

// countPassed counts what XDP passes to tc, by destination: tc stands behind XDP
// and would serve it all, so that calls alone do not tell which of them did.
func (s *stage) countPassed() {
	s.t.Helper()
	packets := world.Must(ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 8, MaxEntries: 64}))(s.t)
	s.t.Cleanup(func() { packets.Close() })
	program := world.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "passed", Type: ebpf.SchedCLS, License: "GPL", Instructions: countDestinations(packets.FD()),
	}))(s.t)
	defer program.Close()
	for _, n := range s.nodes {
		err := n.Do(func() error {
			uplink, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			l, err := link.AttachTCX(link.TCXOptions{Interface: uplink.Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
			if err == nil {
				s.t.Cleanup(func() { l.Close() })
			}
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.passed = packets
}

// countDestinations adds one to the value of a packet's destination, if the map
// has it. IPv4 addresses stand in it as IPv6 has them.
func countDestinations(packets int) asm.Instructions {
	const (
		protocol   = 16 // in struct __sk_buff, in network order
		ipv4, ipv6 = 0x0008, 0xdd86
		key        = -20
		next       = -1 // TCX_NEXT
	)
	load := func(from, to, size int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, from),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, to), asm.Mov.Imm(asm.R4, size),
			asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "end"),
		}
	}
	return slices.Concat(
		asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.StoreImm(asm.RFP, key, 0, asm.Word), asm.StoreImm(asm.RFP, key+4, 0, asm.Word),
			asm.StoreImm(asm.RFP, key+8, -1<<16, asm.Word), // ::ffff:0:0/96
			asm.StoreImm(asm.RFP, key+12, 0, asm.Word), asm.StoreImm(asm.RFP, key+16, 0, asm.Word),
			asm.LoadMem(asm.R7, asm.R6, protocol, asm.Word),
			asm.JEq.Imm(asm.R7, ipv6, "six"),
			asm.JNE.Imm(asm.R7, ipv4, "end"),
		},
		load(14+16, key+12, 4), load(14+20+2, key+16, 2),
		asm.Instructions{asm.Ja.Label("count"), asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("six")},
		load(14+24, key, 16), load(14+40+2, key+16, 2),
		asm.Instructions{
			asm.Mov.Reg(asm.R2, asm.RFP).WithSymbol("count"), asm.Add.Imm(asm.R2, key),
			asm.LoadMapPtr(asm.R1, packets), asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "end"),
			asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, next).WithSymbol("end"), asm.Return(),
		})
}

// byXDP makes calls from outside to an address that the programs serve, and
// tells whether XDP served them: a few packets are tc's, while a neighbour is
// not known.
func (s *stage) byXDP(st step, addr string, calls func() error) error {
	const few = 5
	own := strings.HasSuffix(addr, fmt.Sprintf(":%d", hostPort)) && slices.Equal(st.args, []string{"host"}) // no Service's
	if s.passed == nil || st.who != "client" || own {
		return calls()
	}
	at, packets := destinationOf(addr), uint64(0)
	if err := s.passed.Put(at, packets); err != nil {
		return err
	}
	err := errors.Join(calls(), s.passed.Lookup(at, &packets), s.passed.Delete(at))
	if err == nil && packets > few {
		err = fmt.Errorf("XDP left %d packets to tc", packets)
	}
	return err
}
