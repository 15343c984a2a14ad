// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Build makes programs of this module, such as "portolan-agent", in a new
// directory, which the caller removes. Tests that run real ones call it once,
// in TestMain.
func Build(programs ...string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "portolan-programs"); err != nil {
		return "", err
	}
	args := []string{"build", "-o", dir + "/"}
	for _, p := range programs {
		args = append(args, "portolan.dev/portolan/cmd/"+p)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build %v: %w: %s", programs, err, out), os.RemoveAll(dir))
	}
	return dir, nil
}
