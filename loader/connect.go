// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// effective asks for the programs that run for a cgroup, also those that are
// attached above it: BPF_F_QUERY_EFFECTIVE.
const effective = 1

// servesUs tells whether our program of a hook runs for this very process.
func (l *Loader) servesUs(hook string) bool {
	dir, err := ownCgroup()
	if err != nil {
		return false
	}
	defer dir.Close()
	_, attach := hookType(hook)
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: attach, QueryFlags: effective})
	return err == nil && slices.ContainsFunc(found.Programs, func(p link.AttachedProgram) bool {
		return p.ID == l.attached[hook]
	})
}

func ownCgroup() (*os.File, error) {
	mount, err := FindCgroup2()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find own cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return os.Open(filepath.Join(mount, path))
		}
	}
	return nil, errors.New("find own cgroup: it is in no cgroup2")
}

// connectFault connects a socket of this process to a UDP frontend and looks
// where it ended. A process outside the cgroup that is served cannot tell.
func (l *Loader) connectFault(d Datagram) error {
	hook := fmt.Sprintf("connect%d", familyOf(d.Frontend.Addr()))
	if !l.servesUs(hook) {
		return nil
	}
	// The list of sockets is that of the thread's network namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	peer, err := connectedTo(d.Frontend)
	switch {
	case errors.Is(err, unix.ENETUNREACH) && !routed(d.Endpoint.Addr()):
		return nil // translated or not, there is no way
	case err != nil:
		return fmt.Errorf("self-test of sockets: connect to UDP frontend %s, which has endpoints: %w; restart the agent to have the tables written anew", d.Frontend, err)
	case peer == d.Frontend:
		return fmt.Errorf("self-test of sockets: a connect to UDP frontend %s was not translated; restart the agent", d.Frontend)
	}
	return nil
}

func routed(addr netip.Addr) bool {
	routes, err := netlink.RouteGet(addr.AsSlice())
	return err == nil && len(routes) > 0
}

// connectedTo connects a UDP socket, which sends nothing, and returns where it
// leads. getpeername would be told the frontend, as every application is.
func connectedTo(at netip.AddrPort) (netip.AddrPort, error) {
	family, table := unix.AF_INET6, "udp6"
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if at.Addr().Is4() {
		family, table = unix.AF_INET, "udp"
		to = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return netip.AddrPort{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return netip.AddrPort{}, fmt.Errorf("look at socket: %w", err)
	}
	return peerOf("/proc/thread-self/net/"+table, st.Ino)
}

// peerOf finds the remote address of a socket by its inode.
func peerOf(table string, inode uint64) (netip.AddrPort, error) {
	file, err := os.Open(table)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("list sockets: %w", err)
	}
	defer file.Close()
	want := strconv.FormatUint(inode, 10)
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// Slot, local and remote address, state, queues, timer, retransmits,
		// user, timeout, inode.
		if f := strings.Fields(lines.Text()); len(f) > 9 && f[9] == want {
			return parseSocketAddress(f[2])
		}
	}
	if err := lines.Err(); err != nil {
		return netip.AddrPort{}, fmt.Errorf("list sockets: %w", err)
	}
	return netip.AddrPort{}, fmt.Errorf("list sockets: %s has no socket %s", table, want)
}

// parseSocketAddress reads "0100007F:1F90": words in the order of this machine.
func parseSocketAddress(text string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(text, ":")
	number, err := strconv.ParseUint(port, 16, 16)
	var bytes []byte
	for ; len(addr) >= 8 && err == nil; addr = addr[8:] {
		var word uint64
		word, err = strconv.ParseUint(addr[:8], 16, 32)
		bytes = binary.NativeEndian.AppendUint32(bytes, uint32(word))
	}
	ip, ok := netip.AddrFromSlice(bytes)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("read address %q of a socket: %w", text, err)
	}
	return netip.AddrPortFrom(ip, uint16(number)), nil
}
