// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// FindCgroup2 finds the cgroup2 mount, also in the hybrid layout where it is
// not at /sys/fs/cgroup.
func FindCgroup2() (string, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("find the cgroup2 mount: there is none; mount one (mount -t cgroup2 none /sys/fs/cgroup) or name it by --cgroup-root")
}

// cgroupID is the kernel's id of a cgroup2 directory: its inode number.
func cgroupID(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("--cgroup-root %s: %w", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("--cgroup-root %s: not a cgroup2 directory; cgroup2 is mounted at %s", dir, orNowhere())
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("--cgroup-root %s: %w", dir, err)
	}
	return st.Ino, nil
}

func orNowhere() string {
	if dir, err := FindCgroup2(); err == nil {
		return dir
	}
	return "nowhere on this machine"
}

// netnsCookie is the kernel's name for the network namespace of this thread.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w; Linux 5.14 or later is needed", err)
	}
	return cookie, nil
}

// capabilities the agent needs, what for, and whether CAP_SYS_ADMIN stands in
// for them, as it does for those that were once a part of it.
var capabilities = []struct {
	number   int
	name     string
	reason   string
	sysAdmin bool
}{
	{unix.CAP_BPF, "CAP_BPF", "to load programs and make tables", true},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to attach programs", false},
	{unix.CAP_PERFMON, "CAP_PERFMON", "to let programs read kernel structures", true},
}

func checkCapabilities() error {
	missing, err := MissingCapabilities()
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing capabilities: %s; run as root or grant them (container: securityContext.capabilities.add)", strings.Join(missing, ", "))
	}
	return nil
}

// MissingCapabilities names what the calling thread lacks, each with what it
// is needed for.
func MissingCapabilities() ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	effective := uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	var missing []string
	has := func(number int) bool { return effective&(1<<number) != 0 }
	for _, c := range capabilities {
		if !has(c.number) && !(c.sysAdmin && has(unix.CAP_SYS_ADMIN)) {
			missing = append(missing, c.name+" ("+c.reason+")")
		}
	}
	return missing, nil
}
