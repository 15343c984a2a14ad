// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// computeChecksums makes a device of this thread's namespace send packets with
// their checksums in them, as every wire carries them. A veth leaves them out,
// because what it sends never leaves memory; tc programs are told so, but an
// XDP program could not know.
func computeChecksums(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const setTxChecksum = 0x17 // ETHTOOL_STXCSUM
	value := struct{ command, data uint32 }{setTxChecksum, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("%s: turn transmit checksum offload off: %w", device, errno)
	}
	return nil
}
