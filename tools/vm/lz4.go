// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	lz4Magic = "\x02\x21\x4c\x18"
	// lz4MinMatch is added to every match length: shorter ones are literals.
	lz4MinMatch = 4
	// lz4Long in a nibble of a token means that more length bytes follow.
	lz4Long = 15
)

var errLZ4 = errors.New("unpack lz4: damaged data")

// unpackLZ4 unpacks the legacy frame format, which the kernel's build uses: a
// magic number, then blocks, each with its packed length in front.
func unpackLZ4(packed []byte) ([]byte, error) {
	if len(packed) < len(lz4Magic) || string(packed[:len(lz4Magic)]) != lz4Magic {
		return nil, fmt.Errorf("%w: not a legacy frame", errLZ4)
	}
	packed = packed[len(lz4Magic):]
	var out []byte
	for len(packed) > 0 {
		if len(packed) < 4 {
			return nil, errLZ4
		}
		size := int(binary.LittleEndian.Uint32(packed))
		packed = packed[4:]
		if size > len(packed) {
			return nil, errLZ4
		}
		var err error
		if out, err = unpackLZ4Block(out, packed[:size]); err != nil {
			return nil, err
		}
		packed = packed[size:]
	}
	return out, nil
}

// unpackLZ4Block appends what a block holds. Matches reach back within the
// block only.
func unpackLZ4Block(out, block []byte) ([]byte, error) {
	begin := len(out)
	for len(block) > 0 {
		token := block[0]
		literals, rest, ok := lz4Length(block[1:], int(token>>4))
		if !ok || literals > len(rest) {
			return nil, errLZ4
		}
		out, block = append(out, rest[:literals]...), rest[literals:]
		if len(block) == 0 {
			return out, nil // the last sequence has no match
		}
		if len(block) < 2 {
			return nil, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(block))
		match, rest, ok := lz4Length(block[2:], int(token&lz4Long))
		if !ok || offset == 0 || offset > len(out)-begin {
			return nil, errLZ4
		}
		// Byte by byte: a match may overlap what it produces.
		for range match + lz4MinMatch {
			out = append(out, out[len(out)-offset])
		}
		block = rest
	}
	return out, nil
}

// lz4Length reads the bytes that lengthen a nibble of the token.
func lz4Length(in []byte, n int) (length int, rest []byte, ok bool) {
	if n != lz4Long {
		return n, in, true
	}
	for i, b := range in {
		n += int(b)
		if b != 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}
