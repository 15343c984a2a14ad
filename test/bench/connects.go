// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	rounds = 30
	block  = 10_000
)

// target is an address as connect(2) takes it.
func target(addr netip.Addr, port uint16) unix.RawSockaddrInet4 {
	return unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4(), Port: port>>8 | port<<8}
}

// connected measures connects of a fresh socket. A socket belongs to the cgroup that
// its process was in when it was made: each setting needs its own.
func connected(targets []unix.RawSockaddrInet4) func() (float64, error) {
	return func() (float64, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		return connectAll(fd, targets)
	}
}

// connectAll connects one socket to the targets in turn and returns ns a call.
func connectAll(fd int, targets []unix.RawSockaddrInet4) (float64, error) {
	begin := time.Now()
	for i := range block {
		to := &targets[i%len(targets)]
		if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4); errno != 0 {
			return 0, fmt.Errorf("connect: %w", errno)
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / block, nil
}

// sockets opens, connects and closes sockets and returns ns a socket.
func sockets(targets []unix.RawSockaddrInet4) (float64, error) {
	begin := time.Now()
	for range block {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&targets[0])), unix.SizeofSockaddrInet4); errno != 0 {
			return 0, fmt.Errorf("connect: %w", errno)
		}
		if err := unix.Close(fd); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / block, nil
}

func emptyProgram() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, 1, asm.DWord), asm.Return()}})
}

// connects measures UDP connect() with Portolan, with the hook merely on, with
// an empty program, alternating: the process moves between cgroups, so that
// tables are made once.
func connects(p *bed) ([]figure, error) {
	d, err := newDataplane(p)
	if err != nil {
		return nil, err
	}
	defer d.close(p)
	const services = 10_000
	if err := d.apply(objects(0, services, 10, 100)); err != nil {
		return nil, err
	}
	direct := []unix.RawSockaddrInet4{target(endpoint(0, 0), 8080)}
	var directs, vips []unix.RawSockaddrInet4
	for i := range services {
		directs = append(directs, target(endpoint(i, 0), 8080))
		vips = append(vips, target(vip(i), 80))
	}
	times := map[string][]float64{}
	sample := func(name string, f func() (float64, error)) error {
		if _, err := f(); err != nil { // warm
			return err
		}
		ns, err := f()
		times[name] = append(times[name], ns)
		return err
	}
	life := func() (float64, error) { return sockets(direct) }
	empty, err := emptyProgram()
	if err != nil {
		return nil, err
	}
	for range rounds {
		for _, step := range []struct {
			name string
			f    func() (float64, error)
		}{{"no Service", connected(direct)}, {"warm", connected(vips[:1])}, {"cycling", connected(vips)}, {"life", life}} {
			if err := sample(step.name, step.f); err != nil {
				return nil, err
			}
		}
		if err := p.outside(func() error {
			if err := sample("hook on", connected(direct)); err != nil {
				return err
			}
			if err := sample("hook on, cycling", connected(directs)); err != nil {
				return err
			}
			if err := sample("hook on, life", life); err != nil {
				return err
			}
			l, err := link.AttachCgroup(link.CgroupOptions{Path: p.sibling, Attach: ebpf.AttachCGroupInet4Connect, Program: empty})
			if err != nil {
				return err
			}
			defer l.Close()
			return sample("empty program", connected(direct))
		}); err != nil {
			return nil, err
		}
	}
	return connectFigures(times), nil
}

func connectFigures(times map[string][]float64) []figure {
	m := map[string]float64{}
	for name, v := range times {
		m[name] = median(v)
	}
	ratio := func(what, name, base string, bar float64) figure {
		value := m[name] / m[base]
		return figure{"UDP connect() " + what, value, "ratio", base + ", ns", m[base], bar, value <= bar}
	}
	plus := m["life"] - m["hook on, life"]
	return []figure{
		ratio("through an empty program", "empty program", "hook on", 0),
		ratio("to an address of no Service", "no Service", "hook on", 1.04),
		ratio("to a VIP, warm", "warm", "hook on", 1.12),
		ratio("cycling over 10,000 VIPs", "cycling", "hook on, cycling", 2.5),
		{"socket + connect + close, no Service: added", plus, "ns", "hook on, ns", m["hook on, life"], 30, plus <= 30},
	}
}
