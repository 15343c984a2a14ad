// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// shell runs the user's shell on the node until it exits. A portolan command
// that already knows this node's bpffs and socket is first on its PATH.
func (d *demo) shell() error {
	bin := filepath.Join(d.world.Dir(), "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %s --bpffs-root %s --socket %s \"$@\"\n",
		quoted(d.cliPath), quoted(d.node.BPFFS()), quoted(d.node.Socket()))
	if err := os.WriteFile(filepath.Join(bin, "portolan"), []byte(wrapper), 0o755); err != nil {
		return err
	}
	place, err := d.node.Host("shell")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, `
A shell on the node; exit it and everything is removed. Try:
   curl http://10.96.0.10/          portolan services          portolan status
   the objects, watched by the agent:  %s
   the client pod's namespace:         nsenter --net=%s
`, d.manifests, d.pods["client"].Path())

	cmd := exec.Command(cmp.Or(os.Getenv("SHELL"), "/bin/sh"))
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	d.inShell.Store(true)
	proc, err := place.StartCmd(cmd)
	if err != nil {
		return err
	}
	<-proc.Done()
	return nil
}

// quoted makes a path one word for a shell.
func quoted(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }
