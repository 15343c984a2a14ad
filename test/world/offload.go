// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// computeChecksums makes a device of this thread's namespace send packets with
// their checksums in them, as every wire carries them. A veth leaves them out,
// because what it sends never leaves memory; tc programs are told so, but an
// XDP program could not know.
func computeChecksums(device string) error {
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	return ethtool(device, setTxChecksum, 0)
}

// passXDP gives a veth an XDP program that passes everything: only then does it
// take frames that a program at its other end sends back, as hardware does
// without.
func passXDP(t *testing.T, index int) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	attached, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: index, Flags: link.XDPDriverMode})
	if err == nil {
		t.Cleanup(func() { attached.Close() })
	}
	return err
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
