// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// File types and permissions of the archive, as in struct stat.
const (
	typeDirectory = 0o040000
	typeDevice    = 0o020000
	typeFile      = 0o100000
	typeLink      = 0o120000
)

// cpio writes an archive in the "newc" format, which the kernel unpacks as its
// first file system. Parent directories come by themselves. Errors stick: they
// show at close.
type cpio struct {
	out    *bufio.Writer
	inode  uint32
	known  map[string]bool
	failed error
}

func newCpio(w io.Writer) *cpio {
	return &cpio{out: bufio.NewWriterSize(w, 1<<20), known: map[string]bool{".": true, "/": true}}
}

// entry writes one header and body; size must be what body gives.
func (c *cpio) entry(name string, mode uint32, size int64, body io.Reader, major, minor uint32) {
	name = strings.TrimPrefix(name, "/")
	c.parents(name)
	c.inode++
	links := uint32(1)
	fields := []uint32{c.inode, mode, 0, 0, links, 0, uint32(size), 0, 0, major, minor, uint32(len(name) + 1), 0}
	header := "070701"
	for _, f := range fields {
		header += fmt.Sprintf("%08X", f)
	}
	c.write(header + name + "\x00")
	c.pad(len(header) + len(name) + 1)
	if c.failed == nil && body != nil {
		n, err := io.Copy(c.out, body)
		if err == nil && n != size {
			err = fmt.Errorf("add %s: %d bytes instead of %d", name, n, size)
		}
		c.failed = err
	}
	c.pad(int(size))
}

func (c *cpio) parents(name string) {
	dir := path.Dir(name)
	if c.known[dir] {
		return
	}
	c.addDir(dir)
}

func (c *cpio) addDir(name string) {
	name = strings.Trim(name, "/")
	if c.known[name] {
		return
	}
	c.known[name] = true
	c.entry(name, typeDirectory|0o755, 0, nil, 0, 0)
}

func (c *cpio) addBytes(name string, data string, mode uint32) {
	c.entry(name, typeFile|mode, int64(len(data)), strings.NewReader(data), 0, 0)
}

func (c *cpio) addLink(name, target string) {
	c.entry(name, typeLink|0o777, int64(len(target)), strings.NewReader(target), 0, 0)
}

func (c *cpio) addDevice(name string, major, minor uint32) {
	c.entry(name, typeDevice|0o600, 0, nil, major, minor)
}

// addFile copies a file of the host.
func (c *cpio) addFile(name, source string, mode uint32) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	c.entry(name, typeFile|mode, info.Size(), f, 0, 0)
	return c.failed
}

// close ends the archive and returns the first error.
func (c *cpio) close() error {
	c.known["."] = true
	c.entry("TRAILER!!!", 0, 0, nil, 0, 0)
	if c.failed != nil {
		return c.failed
	}
	return c.out.Flush()
}

func (c *cpio) write(s string) {
	if c.failed == nil {
		_, c.failed = c.out.WriteString(s)
	}
}

// pad fills up to four bytes after n bytes have been written.
func (c *cpio) pad(n int) { c.write("\x00\x00\x00"[:(4-n%4)%4]) }
