// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnArchiveIsLaidOutAsTheKernelReadsIt(t *testing.T) {
	var b bytes.Buffer
	c := newCpio(&b)
	c.addBytes("/etc/name", "five!", 0o644)
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000041ED" + strings.Repeat("00000000", 2) + "00000001" + "00000000" + "00000000" +
		strings.Repeat("00000000", 4) + "00000004" + "00000000" + "etc\x00\x00\x00" +
		"070701" + "00000002" + "000081A4" + strings.Repeat("00000000", 2) + "00000001" + "00000000" + "00000005" +
		strings.Repeat("00000000", 4) + "00000009" + "00000000" + "etc/name\x00" + "\x00" + "five!\x00\x00\x00" +
		"070701" + "00000003" + "00000000" + strings.Repeat("00000000", 2) + "00000001" + "00000000" + "00000000" +
		strings.Repeat("00000000", 4) + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if b.String() != want {
		t.Errorf("archive\n%q, want\n%q", b.String(), want)
	}
}

func TestEveryPartOfAnArchiveIsPaddedToFourBytes(t *testing.T) {
	for size := range 9 {
		var b bytes.Buffer
		c := newCpio(&b)
		c.addBytes("f"+strings.Repeat("x", size), strings.Repeat("y", size), 0o600)
		c.addLink("link", "f")
		c.addDevice("null", 1, 3)
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		for at := range b.Len() - 6 {
			if string(b.Bytes()[at:at+6]) == "070701" && at%4 != 0 {
				t.Errorf("names and bodies of %d bytes: a header at offset %d", size, at)
			}
		}
	}
}

func TestCpioOfTheHostUnpacksOurArchives(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs the program cpio")
	}
	var b bytes.Buffer
	c := newCpio(&b)
	c.addBytes("a/b/c", "deep", 0o640)
	c.addLink("a/link", "b/c")
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-id", "--quiet")
	cmd.Dir, cmd.Stdin = t.TempDir(), &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(cmd.Dir, "a/link")); err != nil || string(got) != "deep" {
		t.Errorf("read %q (%v), want what was packed", got, err)
	}
}

func TestAFileThatIsMissingFailsTheArchive(t *testing.T) {
	c := newCpio(&bytes.Buffer{})
	if err := c.addFile("x", filepath.Join(t.TempDir(), "none"), 0o644); err == nil {
		t.Error("no error for a file that does not exist")
	}
}
