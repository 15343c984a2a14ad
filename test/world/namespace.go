// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with a name in /run/netns.
type Namespace struct {
	name   string
	path   string
	handle netns.NsHandle
}

// Name is the name that the namespace was given when made, such as "node1".
func (n *Namespace) Name() string { return n.name }

// Path is the file by which another process finds the namespace.
func (n *Namespace) Path() string { return n.path }

// Do runs f on an OS thread that is inside the namespace, in the caller's
// goroutine, and returns to the caller's namespace however f ends. Goroutines
// that f starts are not inside.
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", n.name, err)
	}
	if err := netns.Set(n.handle); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", n.name, errors.Join(err, home.Close()))
	}
	defer func() {
		// A thread that cannot go home stays locked: it ends with its
		// goroutine and no other code ever runs on it.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close()
	}()
	return f()
}

// newNamespace makes a namespace with its loopback up. The caller holds w.mu.
func (w *World) newNamespace(name string) (*Namespace, error) {
	n := &Namespace{name: name, path: filepath.Join(nsDir, w.id+"-"+name), handle: netns.None()}
	w.namespaces = append(w.namespaces, n)
	if err := n.create(); err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	if err := n.Do(configureNew); err != nil {
		return nil, fmt.Errorf("configure namespace %s: %w", name, err)
	}
	return n, nil
}

// create unshares a namespace, binds it to n.path and comes home again.
func (n *Namespace) create() error {
	if err := os.MkdirAll(nsDir, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(n.path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if n.handle, err = netns.New(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), n.path, "", unix.MS_BIND, "")
	if homeErr := netns.Set(home); homeErr != nil {
		return errors.Join(err, homeErr) // the thread stays locked, see Do
	}
	runtime.UnlockOSThread()
	return err
}

// configureNew makes the current, new namespace predictable: a namespace
// inherits some settings from the host, and IPv6 addresses would be unusable
// for a second while duplicates are looked for.
func configureNew() error {
	settings := []struct{ name, value string }{
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv6/conf/all/disable_ipv6", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
		{"ipv6/conf/lo/disable_ipv6", "0"},
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/all/accept_ra", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
	}
	for _, s := range settings {
		if err := Sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Sysctl sets net/name of the calling thread's network namespace; call it
// inside Namespace.Do. The name uses slashes: "ipv4/ip_forward".
func Sysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", name)
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// remove takes the namespace's name away and lets go of it. The kernel
// dissolves it, and the links in it, when the last process in it has ended.
func (n *Namespace) remove() error {
	err := unbind(n.path)
	if n.handle.IsOpen() {
		err = errors.Join(err, n.handle.Close())
	}
	return err
}

// unbind unmounts and removes a namespace's name. One that is gone is fine.
func unbind(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
