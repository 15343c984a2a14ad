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
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/maps"
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
func (l *Loader) connectFault(frontend netip.AddrPort) error {
	if err := l.checkFrontend(frontend); err != nil {
		return fmt.Errorf("self-test of sockets: UDP frontend %s %w; restart the agent to have the tables written anew", frontend, err)
	}
	if !l.servesUs(fmt.Sprintf("connect%d", familyOf(frontend.Addr()))) {
		return nil
	}
	// The list of sockets is that of the thread's network namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	peer, err := connectedTo(frontend)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		// No kernel refuses to connect a UDP socket; our programs do.
		return fmt.Errorf("self-test of sockets: connect to UDP frontend %s, which has endpoints: %w; restart the agent to have the tables written anew", frontend, err)
	case err == nil && peer == frontend:
		return fmt.Errorf("self-test of sockets: a connect to UDP frontend %s was not translated; restart the agent", frontend)
	}
	// Other errors are about the way to an endpoint, or about this process.
	return nil
}

// checkFrontend follows a UDP frontend in the tables to its range.
func (l *Loader) checkFrontend(at netip.AddrPort) error {
	var id uint32
	var found bool
	if at.Addr().Is4() {
		id, found = l.tables.Frontends4.Get(maps.Frontend4Key(at, unix.IPPROTO_UDP))
	} else {
		id, found = l.tables.Frontends6.Get(maps.Frontend6Key(at, unix.IPPROTO_UDP))
	}
	switch {
	case !found:
		return errors.New("is not in the tables")
	case id >= l.tables.FrontendState.Len():
		return fmt.Errorf("has the id %d, which there is not", id)
	}
	if _, count, _ := maps.SplitRangeWord(l.tables.FrontendState.LoadWord(id, maps.StateInternal)); count == 0 {
		return errors.New("has endpoints, but none in the tables")
	}
	return nil
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
