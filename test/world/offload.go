// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ComputeChecksums makes a device of this thread's namespace send packets with
// their checksums in them, as every wire carries them. A veth leaves them out,
// because what it sends never leaves memory; tc programs are told so, but an
// XDP program could not know.
func ComputeChecksums(device string) error {
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	return ethtool(device, setTxChecksum, 0)
}

// PassXDP gives a veth of this thread's namespace an XDP program that passes
// everything, until it is closed: only then does the device take frames that a
// program at its other end sends back, as hardware does without.
func PassXDP(index int) (io.Closer, error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		return nil, err
	}
	defer program.Close()
	return link.AttachXDP(link.XDPOptions{Program: program, Interface: index, Flags: link.XDPDriverMode})
}

// LikeHardware makes the uplinks of these namespaces, and the switch's ports,
// behave as network cards do, as far as XDP programs can tell.
func (w *World) LikeHardware(t TB, uplinks ...*Namespace) {
	t.Helper()
	for _, ns := range uplinks {
		if err := ns.Do(func() error { return ComputeChecksums("eth0") }); err != nil {
			t.Fatalf("%v", err)
		}
	}
	err := w.Switch().Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() != "veth" {
				continue
			}
			c, failed := PassXDP(l.Attrs().Index)
			if err = errors.Join(err, failed); failed == nil {
				t.Cleanup(func() { c.Close() })
			}
		}
		return err
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func ethtool(device string, command, data uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{command, data}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("%s: ethtool command %#x: %w", device, command, errno)
	}
	return nil
}
