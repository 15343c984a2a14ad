// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// frame packs blocks into a legacy frame.
func frame(blocks ...string) []byte {
	out := []byte(lz4Magic)
	for _, b := range blocks {
		out = binary.LittleEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	return out
}

func TestLZ4FramesAreUnpacked(t *testing.T) {
	for _, c := range []struct {
		name   string
		packed []byte
		want   string
	}{
		{"nothing", frame(), ""},
		{"literals only", frame("\x50hello"), "hello"},
		{"fifteen literals need a length byte", frame("\xf0\x00" + strings.Repeat("a", 15)), strings.Repeat("a", 15)},
		{"a long length is a sum of bytes", frame("\xf0\xff\x05" + strings.Repeat("b", 275)), strings.Repeat("b", 275)},
		{"a match repeats what was", frame("\x40abcd\x04\x00" + "\x10e"), "abcdabcde"},
		{"a match overlaps what it makes", frame("\x13a\x01\x00" + "\x10b"), "aaaaaaaab"},
		{"a long match", frame("\x1fa\x01\x00\x05" + "\x10b"), strings.Repeat("a", 1+15+4+5) + "b"},
		{"two blocks", frame("\x20ab", "\x20cd"), "abcd"},
	} {
		got, err := unpackLZ4(c.packed)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q (%v), want %q", c.name, got, err, c.want)
		}
	}
}

func TestDamagedLZ4IsRefused(t *testing.T) {
	for name, packed := range map[string][]byte{
		"empty":                            nil,
		"another magic":                    []byte("\x04\x22\x4d\x18"),
		"a length that is cut off":         append(frame(), 1, 0),
		"a block that is cut off":          append(frame(), 9, 0, 0, 0, 0x50),
		"literals that are cut off":        frame("\x50hel"),
		"a length byte that is cut off":    frame("\xf0\xff"),
		"an offset that is cut off":        frame("\x10a\x01"),
		"a match without offset":           frame("\x10a\x00\x00"),
		"a match before the begin":         frame("\x10a\x02\x00"),
		"a match into the block before it": frame("\x20ab", "\x10c\x02\x00"),
		"a match length that is cut off":   frame("\x1fa\x01\x00"),
	} {
		if out, err := unpackLZ4(packed); !errors.Is(err, errLZ4) {
			t.Errorf("%s: %q (%v), want an error", name, out, err)
		}
	}
}

// bzImage lays a payload out as the kernel's build does.
func bzImage(setupSectors byte, payload string) []byte {
	sectors := int(setupSectors)
	if sectors == 0 {
		sectors = 4
	}
	const offset = 100 // of the payload in the protected-mode part
	image := make([]byte, (sectors+1)*sector+offset)
	image[offsetSetupSectors] = setupSectors
	copy(image[offsetMagic:], bzMagic)
	binary.LittleEndian.PutUint32(image[offsetPayload:], offset)
	binary.LittleEndian.PutUint32(image[offsetPayloadLength:], uint32(len(payload)+4))
	return append(image, payload+"size"...)
}

func TestTheKernelIsFoundInItsImage(t *testing.T) {
	elf := "\x7fELF of a kernel"
	for _, setup := range []byte{0, 1, 27} {
		packed := string(frame(string([]byte{0xf0, byte(len(elf) - 15)}) + elf))
		got, err := unpackKernel(bzImage(setup, packed))
		if err != nil || string(got) != elf {
			t.Errorf("%d setup sectors: %q (%v), want %q", setup, got, err, elf)
		}
	}
}

func TestWhatIsNoKernelImageIsRefused(t *testing.T) {
	long := bzImage(1, "payload!")
	binary.LittleEndian.PutUint32(long[offsetPayloadLength:], 1<<31)
	for name, image := range map[string][]byte{
		"empty":                   nil,
		"another file":            make([]byte, 4096),
		"a payload beyond it":     long,
		"packed in another way":   bzImage(1, "BZh91AY&SY"),
		"packed, but no ELF file": bzImage(1, string(frame("\x50hello"))),
	} {
		if out, err := unpackKernel(image); err == nil {
			t.Errorf("%s: %q, want an error", name, out)
		}
	}
}
