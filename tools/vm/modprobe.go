// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modprobe loads the module the kernel asks for: "modprobe -q -- NAME".
func modprobe(args []string) int {
	j, err := readJob()
	if err != nil {
		fmt.Fprintln(os.Stderr, "modprobe:", err)
		return 1
	}
	code := 0
	for _, name := range args {
		if strings.HasPrefix(name, "-") {
			continue
		}
		if err := j.Modules.load(name); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			code = 1
		}
	}
	return code
}

// load loads a module, or those with a matching alias, and before it what it
// depends on. A name that the image does not have is no error: it may be built
// in, and when it is not, whoever asked for it finds out.
func (t moduleTable) load(request string) error {
	for _, name := range t.resolve(request) {
		f, err := os.Open(filepath.Join(moduleDir, name+".ko"))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}
