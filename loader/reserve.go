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
// nobody had reserved before.
func ReservePorts(socket string, first, last uint16) error {
	have, err := readPorts(reservedPorts)
	if err != nil {
		return err
	}
	ours, err := readPorts(reservedPortsFile(socket))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	added := false
	for port := int(first); port <= int(last); port++ {
		if !have[port] {
			have[port], ours[port], added = true, true, true
		}
	}
	if !added {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("remember reserved ports: %w", err)
	}
	if err := os.WriteFile(reservedPortsFile(socket), []byte(ours.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember reserved ports: %w", err)
	}
	return writeReserved(&have)
}

// RestoreReservedPorts takes back what ReservePorts did, and tells which ports
// these were; with dryRun it only tells.
func RestoreReservedPorts(socket string, dryRun bool) ([]string, error) {
	ours, err := readPorts(reservedPortsFile(socket))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have, err := readPorts(reservedPorts)
	if err != nil {
		return nil, err
	}
	var gone ports
	for port, our := range ours {
		if our && have[port] {
			gone[port], have[port] = true, false
		}
	}
	var done []string
	if list := gone.String(); list != "" {
		done = append(done, fmt.Sprintf("ports %s from net.ipv4.ip_local_reserved_ports", list))
		if !dryRun {
			err = writeReserved(&have)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case dryRun:
		return done, nil
	}
	return done, os.Remove(reservedPortsFile(socket))
}

func writeReserved(list *ports) error {
	// An empty list is written as an empty line.
	if err := os.WriteFile(reservedPorts, []byte(list.String()+"\n"), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", reservedPorts, err)
	}
	return nil
}

// ports is a set of ports. The kernel joins ranges that touch, so that what was
// added to its list is found again port by port only.
type ports [1 << 16]bool

// readPorts reads a file such as "80,100-200".
func readPorts(path string) (ports, error) {
	var out ports
	data, err := os.ReadFile(path)
	if err != nil {
		return out, fmt.Errorf("read reserved ports: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return out, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(item, "-")
		if !isRange {
			high = low
		}
		first, errLow := strconv.ParseUint(low, 10, 16)
		last, errHigh := strconv.ParseUint(high, 10, 16)
		if err := errors.Join(errLow, errHigh); err != nil {
			return out, fmt.Errorf("read reserved ports from %s: %w", path, err)
		}
		for port := first; port <= last; port++ {
			out[port] = true
		}
	}
	return out, nil
}

// String writes ranges, as the kernel does.
func (p *ports) String() string {
	var items []string
	for first := 0; first < len(p); first++ {
		if !p[first] {
			continue
		}
		last := first
		for last+1 < len(p) && p[last+1] {
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
