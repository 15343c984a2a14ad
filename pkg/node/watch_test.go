// SPDX-License-Identifier: Apache-2.0

// Needs root.

package node

import (
	"context"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace moves the test's goroutine to a network namespace of its own,
// for good, and returns what moves another goroutine there.
func inNamespace(t *testing.T) (enter func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: no namespaces can be made")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return func() error {
		runtime.LockOSThread()
		return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
	}
}

// Who has read the node's addresses before the subscription has missed what
// changed in between.
func TestWatchTellsWhenItHasBegun(t *testing.T) {
	enter := inNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, ended := make(chan Change, 1), make(chan error, 1)
	go func() {
		if err := enter(); err != nil {
			ended <- err
			return
		}
		ended <- Watch(ctx, func(c Change) {
			select {
			case told <- c:
			default:
			}
		})
	}()
	select {
	case c := <-told:
		if !c.Facts || !c.Routes {
			t.Errorf("told %+v, want that anything may have changed", c)
		}
	case err := <-ended:
		t.Fatalf("Watch ended: %v", err)
	case <-time.After(5 * time.Second):
		t.Error("nothing is told")
	}
}

// While a change is being taken up the kernel has so much to tell that its
// buffer overflows. What comes afterwards is told all the same.
func TestWatchGoesOnAfterMoreChangesThanTheKernelKeeps(t *testing.T) {
	enter := inNamespace(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := func(text string) *netlink.Addr {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	toggle := func() {
		if err := netlink.AddrAdd(lo, addr("192.0.2.1/32")); err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrDel(lo, addr("192.0.2.1/32")); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, goOn, ended := make(chan Change), make(chan struct{}), make(chan error, 1)
	go func() {
		if err := enter(); err != nil {
			ended <- err
			return
		}
		ended <- Watch(ctx, func(c Change) {
			select {
			case told <- c:
			case <-ctx.Done():
			}
			<-goOn
		})
	}()
	// awaitCall makes changes until one is told.
	awaitCall := func() {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; {
			toggle()
			select {
			case <-told:
				return
			case err := <-ended:
				t.Fatalf("Watch ended: %v", err)
			case <-time.After(time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatal("no change is told any more")
			}
		}
	}
	awaitCall()
	for range 4000 { // several times what the buffer holds
		toggle()
	}
	close(goOn)
	for range 100 {
		awaitCall()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
