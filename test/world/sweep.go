// SPDX-License-Identifier: Apache-2.0

package world

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// base holds one directory per world, which is how worlds find each
	// other. It is short because unix socket paths end at 107 bytes.
	base = "/run/portolan-world"
	// nsDir is where namespaces are bound for others to find, as ip(8) does.
	nsDir = "/run/netns"
	// prefix begins every world's id.
	prefix = "ptl-"
	// lockName is the file in a world's directory that its process holds
	// locked. The kernel drops the lock with the process, so unlike a pid it
	// cannot be mistaken.
	lockName = "lock"
)

// claimed is how many ids this process has tried. None is used twice: when a
// sweep helps a world that is being closed to remove its directory, the name is
// free before Close has ended.
var claimed atomic.Int64

// claim makes a directory with a new id and locks it for this process.
func claim() (id, dir string, lock *os.File, err error) {
	unlock, err := lockBase()
	if err != nil {
		return "", "", nil, err
	}
	defer unlock()
	for {
		id = fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), claimed.Add(1))
		dir = filepath.Join(base, id)
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", "", nil, err
		}
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return "", "", nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return "", "", nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		return id, dir, lock, nil
	}
}

// lockBase makes claiming and sweeping exclude each other: a directory that
// exists but is not locked yet must not be taken for a leftover.
func lockBase() (unlock func(), err error) {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(base)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", base, err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil // closing drops the lock
}

// Sweep removes what worlds of crashed processes have left. Worlds whose
// process lives are not touched. It needs root.
func Sweep() error {
	unlock, err := lockBase()
	if err != nil {
		return fmt.Errorf("sweep worlds: %w", err)
	}
	defer unlock()
	entries, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("sweep worlds: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && abandoned(e.Name()) {
			errs = append(errs, erase(e.Name()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep worlds: %w", err)
	}
	return nil
}

// abandoned reports whether no process holds the lock of world id.
func abandoned(id string) bool {
	lock, err := os.Open(filepath.Join(base, id, lockName))
	if err != nil {
		// Without a lock file it died between two system calls of claim, or
		// it is being closed right now and is as good as gone.
		return errors.Is(err, fs.ErrNotExist)
	}
	defer lock.Close()
	return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// erase removes every trace of world id from the machine: processes in its
// cgroup, cgroups, mounts, namespaces and last its directory, so that a world
// whose removal was cut short is found again.
func erase(id string) error {
	var errs []error
	if root, err := CgroupMount(); err == nil {
		errs = append(errs, removeCgroup(filepath.Join(root, id)))
	}
	errs = append(errs, unmountBelow(filepath.Join(base, id)))
	names, err := filepath.Glob(filepath.Join(nsDir, id+"-*"))
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, unbind(name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(base, id))
}

// unmountBelow unmounts everything mounted at or below dir, the deepest first.
func unmountBelow(dir string) error {
	mounts, err := mountPoints(func(point, _ string) bool {
		return point == dir || strings.HasPrefix(point, dir+"/")
	})
	if err != nil {
		return err
	}
	slices.Reverse(mounts)
	var errs []error
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// mountPoints lists this process's mount points that match, in mount order.
func mountPoints(match func(point, fsType string) bool) ([]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	in := bufio.NewScanner(f)
	for in.Scan() {
		// device, mount point, type, options; no path of ours holds the
		// octal escapes that the file has for blanks.
		fields := strings.Fields(in.Text())
		if len(fields) > 2 && match(fields[1], fields[2]) {
			points = append(points, fields[1])
		}
	}
	return points, in.Err()
}
