// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CgroupMount returns where cgroup2 is mounted: /sys/fs/cgroup, or
// /sys/fs/cgroup/unified where cgroup v1 lies beside it.
func CgroupMount() (string, error) {
	points, err := mountPoints(func(_, fsType string) bool { return fsType == "cgroup2" })
	if err != nil {
		return "", err
	}
	if len(points) == 0 {
		return "", errors.New("find cgroup2: not mounted: run mount -t cgroup2 none /sys/fs/cgroup")
	}
	return points[0], nil
}

// removeCgroup kills what lives in the cgroup tree at dir and removes the
// tree. A tree that does not exist is fine.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := removeEmptying(dirs[i]); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
		}
	}
	return nil
}

// removeEmptying removes one cgroup directory, killing its processes. The
// kernel answers EBUSY until the last of them is gone, zombies excepted.
func removeEmptying(dir string) error {
	return Wait(10*time.Second, func() error {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		text, readErr := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if readErr != nil {
			return errors.Join(err, readErr)
		}
		for _, word := range strings.Fields(string(text)) {
			if pid, convErr := strconv.Atoi(word); convErr == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL) // it may have gone by itself
			}
		}
		return err
	})
}
