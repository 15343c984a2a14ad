// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
)

// Offsets in the header of a bzImage (Documentation/arch/x86/boot.rst).
const (
	offsetSetupSectors  = 0x1f1
	offsetMagic         = 0x202
	offsetPayload       = 0x248
	offsetPayloadLength = 0x24c
	sector              = 512
	bzMagic             = "HdrS"
)

// bzPayload is the packed vmlinux within a bzImage. Booting the unpacked one
// saves the guest the work, which emulation makes ten times as long.
func bzPayload(image []byte) ([]byte, error) {
	if len(image) < offsetPayloadLength+4 || string(image[offsetMagic:offsetMagic+4]) != bzMagic {
		return nil, errors.New("unpack kernel: not a bzImage")
	}
	sectors := int(image[offsetSetupSectors])
	if sectors == 0 {
		sectors = 4 // what very old boot loaders meant
	}
	begin := uint64(sectors+1)*sector + uint64(binary.LittleEndian.Uint32(image[offsetPayload:]))
	length := uint64(binary.LittleEndian.Uint32(image[offsetPayloadLength:]))
	if length < 8 || begin+length > uint64(len(image)) {
		return nil, errors.New("unpack kernel: the payload ends behind the file")
	}
	return image[begin : begin+length-4], nil // the last four bytes are the unpacked size
}

// unpackKernel turns a bzImage into a vmlinux.
func unpackKernel(image []byte) ([]byte, error) {
	payload, err := bzPayload(image)
	if err != nil {
		return nil, err
	}
	var out []byte
	switch {
	case bytes.HasPrefix(payload, []byte(lz4Magic)):
		out, err = unpackLZ4(payload)
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		out, err = filter(payload, "xz", "-dc", "--single-stream")
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		out, err = filter(payload, "zstd", "-dcq")
	default:
		return nil, fmt.Errorf("unpack kernel: packed in an unknown way, magic %x", payload[:4])
	}
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	if !bytes.HasPrefix(out, []byte("\x7fELF")) {
		return nil, errors.New("unpack kernel: the payload is no ELF file")
	}
	return out, nil
}

// filter pipes data through a program of the host.
func filter(in []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
