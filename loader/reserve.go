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
// range, ends included, and remembers beside the agent's socket that it did.
func ReservePorts(socket string, first, last uint16) error {
	list, err := readReserved()
	if err != nil {
		return err
	}
	if reserved(list, first, last) {
		return nil
	}
	item := fmt.Sprintf("%d-%d", first, last)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("remember reserved ports: %w", err)
	}
	if err := os.WriteFile(reservedPortsFile(socket), []byte(item+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember reserved ports: %w", err)
	}
	return writeReserved(append(list, item))
}

// RestoreReservedPorts takes back what ReservePorts did; with dryRun it only
// tells.
func RestoreReservedPorts(socket string, dryRun bool) ([]string, error) {
	data, err := os.ReadFile(reservedPortsFile(socket))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which ports were reserved: %w", err)
	}
	item := strings.TrimSpace(string(data))
	done := []string{fmt.Sprintf("ports %s from net.ipv4.ip_local_reserved_ports", item)}
	if dryRun {
		return done, nil
	}
	list, err := readReserved()
	if err != nil {
		return nil, err
	}
	kept := make([]string, 0, len(list))
	for _, have := range list {
		if have != item {
			kept = append(kept, have)
		}
	}
	if err := writeReserved(kept); err != nil {
		return nil, err
	}
	return done, os.Remove(reservedPortsFile(socket))
}

func readReserved() ([]string, error) {
	data, err := os.ReadFile(reservedPorts)
	if err != nil {
		return nil, fmt.Errorf("read reserved ports: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, ","), nil
}

func writeReserved(list []string) error {
	// An empty list is written as an empty line.
	if err := os.WriteFile(reservedPorts, []byte(strings.Join(list, ",")+"\n"), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", reservedPorts, err)
	}
	return nil
}

// reserved tells whether one item of a list such as "80,100-200" holds a range.
func reserved(list []string, first, last uint16) bool {
	for _, item := range list {
		low, high, isRange := strings.Cut(item, "-")
		if !isRange {
			high = low
		}
		l, errLow := strconv.ParseUint(low, 10, 16)
		h, errHigh := strconv.ParseUint(high, 10, 16)
		if errLow == nil && errHigh == nil && uint16(l) <= first && last <= uint16(h) {
			return true
		}
	}
	return false
}
