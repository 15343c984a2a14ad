// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// reservedPorts lists the ports that the kernel gives no socket by chance, in
// both families, per network namespace.
const reservedPorts = "/proc/sys/net/ipv4/ip_local_reserved_ports"

// reservedPortsFile is where the agent of a socket remembers which ports it
// added to that list.
func reservedPortsFile(socket string) string { return socket + ".reserved-ports" }

// ReservePorts keeps the kernel from giving a socket of this node a port of a
// range, ends included, and remembers beside the agent's socket which of them
// were not reserved before.
func ReservePorts(socket string, first, last uint16) error {
	reserved, err := readPorts(reservedPorts)
	if err != nil {
		return fmt.Errorf("read reserved ports: %w", err)
	}
	file := reservedPortsFile(socket)
	ours, err := readPorts(file)
	if errors.Is(err, fs.ErrNotExist) {
		ours = &portSet{}
	} else if err != nil {
		return fmt.Errorf("read which ports were reserved: %w", err)
	}
	missing := false
	for p := int(first); p <= int(last); p++ {
		if !reserved[p] {
			reserved[p], ours[p], missing = true, true, true
		}
	}
	if !missing {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("remember reserved ports: %w", err)
	}
	if err := os.WriteFile(file, []byte(ours.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember reserved ports: %w", err)
	}
	return writeReserved(reserved)
}

// RestoreReservedPorts takes back what ReservePorts did; with dryRun it only
// tells.
func RestoreReservedPorts(socket string, dryRun bool) ([]string, error) {
	ours, err := readPorts(reservedPortsFile(socket))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which ports were reserved: %w", err)
	}
	done := []string{fmt.Sprintf("ports %s from net.ipv4.ip_local_reserved_ports", ours)}
	if dryRun {
		return done, nil
	}
	reserved, err := readPorts(reservedPorts)
	if err != nil {
		return nil, fmt.Errorf("read reserved ports: %w", err)
	}
	for p := range reserved {
		reserved[p] = reserved[p] && !ours[p]
	}
	if err := writeReserved(reserved); err != nil {
		return nil, err
	}
	return done, os.Remove(reservedPortsFile(socket))
}

func writeReserved(s *portSet) error {
	// An empty list is written as an empty line.
	if err := os.WriteFile(reservedPorts, []byte(s.String()+"\n"), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", reservedPorts, err)
	}
	return nil
}

// portSet is a list such as "80,100-200", port by port: the kernel joins ranges
// that touch, so that no range that was written need be found again.
type portSet [1 << 16]bool

func readPorts(path string) (*portSet, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &portSet{}
	for _, item := range strings.FieldsFunc(strings.TrimSpace(string(data)), func(r rune) bool { return r == ',' }) {
		low, high, isRange := strings.Cut(item, "-")
		if !isRange {
			high = low
		}
		first, errLow := strconv.ParseUint(low, 10, 16)
		last, errHigh := strconv.ParseUint(high, 10, 16)
		if err := errors.Join(errLow, errHigh); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, item, err)
		}
		for p := first; p <= last; p++ {
			s[p] = true
		}
	}
	return s, nil
}

func (s *portSet) String() string {
	var items []string
	for first := 0; first < len(s); first++ {
		if !s[first] {
			continue
		}
		last := first
		for last+1 < len(s) && s[last+1] {
			last++
		}
		item := strconv.Itoa(first)
		if last > first {
			item += "-" + strconv.Itoa(last)
		}
		items = append(items, item)
		first = last
	}
	return strings.Join(items, ",")
}
