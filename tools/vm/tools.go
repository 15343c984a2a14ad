// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os/exec"
	"path"
	"regexp"
)

// guestTools are programs of the host that tests start. They come with the
// libraries they are linked with.
var guestTools = []string{"sh", "sleep"}

// library is a line of ldd: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)",
// or without an arrow for the interpreter.
var library = regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(0x`)

// libraries are the files that a program needs, by what ldd prints.
func libraries(ldd string) []string {
	var files []string
	for _, found := range library.FindAllStringSubmatch(ldd, -1) {
		files = append(files, found[1])
	}
	return files
}

// addTools copies programs to /bin, and their libraries to where they are on
// the host.
func addTools(c *cpio, names []string) error {
	added := map[string]bool{}
	for _, name := range names {
		file, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("find a program for the guest: %w", err)
		}
		linked, err := command("", "ldd", file)
		if err != nil {
			return err
		}
		if err := c.addFile(path.Join("/bin", name), file, 0o755); err != nil {
			return err
		}
		for _, l := range libraries(linked) {
			if added[l] {
				continue
			}
			added[l] = true
			if err := c.addFile(l, l, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}
