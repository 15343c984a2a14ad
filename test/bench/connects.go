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

	"portolan.dev/portolan/test/paths"
)

const (
	rounds = 60
	pairs  = 600
	block  = 500 // connects that are timed at once
	lives  = 10_000
)

// target is an address as connect(2) takes it.
func target(addr netip.Addr, port uint16) unix.RawSockaddrInet4 {
	return unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: addr.As4(), Port: port>>8 | port<<8}
}

// side is one of two things that are compared: a socket, which belongs to the
// cgroup that its process was in when it was made, and where it connects to.
type side struct {
	fd      int
	targets []unix.RawSockaddrInet4
	next    int
}

func newSide(targets []unix.RawSockaddrInet4) (*side, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	s := &side{fd: fd, targets: targets}
	for range max(1, len(targets)/block) { // warm
		if _, err := s.connect(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *side) close() { _ = unix.Close(s.fd) }

// connect connects to the next block of targets in turn and returns ns a call.
func (s *side) connect() (float64, error) {
	begin := time.Now()
	at := s.next
	for range block {
		to := &s.targets[at]
		if at++; at == len(s.targets) {
			at = 0
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4); errno != 0 {
			return 0, fmt.Errorf("connect: %w", errno)
		}
	}
	s.next = at
	return float64(time.Since(begin).Nanoseconds()) / block, nil
}

// comparison is the median of the base, and of the ratios or differences of
// neighbouring blocks. Neighbours have the same weather: a busy machine moves
// both.
type comparison struct{ base, result float64 }

// compare times blocks of a and b in the order a b b a.
func compare(a, base *side) (comparison, error) {
	var bases, ratios []float64
	for range pairs {
		var ns [4]float64
		for i, s := range []*side{a, base, base, a} {
			var err error
			if ns[i], err = s.connect(); err != nil {
				return comparison{}, err
			}
		}
		bases = append(bases, (ns[1]+ns[2])/2)
		ratios = append(ratios, (ns[0]+ns[3])/(ns[1]+ns[2]))
	}
	return comparison{paths.Median(bases), paths.Median(ratios)}, nil
}

// sockets opens, connects and closes sockets and returns the median of ns a
// socket: each is timed by itself, because the kernel frees what was closed
// later, many at once, in whoever's time that falls.
func sockets(targets []unix.RawSockaddrInet4) (float64, error) {
	var times [lives]float64
	before := time.Now()
	for i := range times {
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
		now := time.Now()
		times[i] = float64(now.Sub(before).Nanoseconds())
		before = now
	}
	return paths.Median(times[:]), nil
}

func emptyProgram() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, 1, asm.DWord), asm.Return()}})
}

// connects measures UDP connect() with Portolan beside the same connects of a
// socket whose cgroup has no program, and beside an empty program.
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
	var figures []figure
	for _, c := range []struct {
		what         string
		to, baseline []unix.RawSockaddrInet4
		base         string
		bar          float64
	}{
		{"to an address of no Service", direct, direct, "no program", 1.04},
		{"to a VIP, warm", vips[:1], direct, "no program", 1.12},
		{"cycling over 10,000 VIPs", vips, directs, "no program, cycling", 2.5},
	} {
		got, err := against(p, c.to, c.baseline)
		if err != nil {
			return nil, err
		}
		figures = append(figures, figure{"UDP connect() " + c.what, got.result, "ratio", c.base + ", ns", got.base, c.bar, got.result <= c.bar})
	}
	empty, err := throughEmpty(p, direct)
	if err != nil {
		return nil, err
	}
	life, err := socketLives(p, p.cgroup, direct)
	figures = append(figures, figure{"socket + connect + close, no Service: added", life.result, "ns", "no program, ns", life.base, 30, life.result <= 30})
	return append(figures, empty...), err
}

// against compares connects here with those of a socket made outside.
func against(p *bed, to, baseline []unix.RawSockaddrInet4) (comparison, error) {
	here, err := newSide(to)
	if err != nil {
		return comparison{}, err
	}
	defer here.close()
	there, err := p.socketIn(p.sibling, baseline)
	if err != nil {
		return comparison{}, err
	}
	defer there.close()
	return compare(here, there)
}

// socketIn makes a socket that belongs to a cgroup.
func (p *bed) socketIn(cgroup string, targets []unix.RawSockaddrInet4) (*side, error) {
	var s *side
	err := p.in(cgroup, func() (err error) {
		s, err = newSide(targets)
		return err
	})
	return s, err
}

// throughEmpty is what any program at the hook costs, though it does nothing:
// the floor of the other figures.
func throughEmpty(p *bed, direct []unix.RawSockaddrInet4) ([]figure, error) {
	program, err := emptyProgram()
	if err != nil {
		return nil, err
	}
	defer program.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: p.empty, Attach: ebpf.AttachCGroupInet4Connect, Program: program})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	through, err := p.socketIn(p.empty, direct)
	if err != nil {
		return nil, err
	}
	defer through.close()
	bare, err := p.socketIn(p.sibling, direct)
	if err != nil {
		return nil, err
	}
	defer bare.close()
	got, err := compare(through, bare)
	if err != nil {
		return nil, err
	}
	life, err := socketLives(p, p.empty, direct)
	return []figure{
		{"UDP connect() through an empty program", got.result, "ratio", "no program, ns", got.base, 0, true},
		{"socket + connect + close, an empty program: added", life.result, "ns", "no program, ns", life.base, 0, true},
	}, err
}

// socketLives is what programs that have nothing to do add to the life of a
// socket made in a cgroup: the median of neighbours' differences, in ns.
func socketLives(p *bed, cgroup string, direct []unix.RawSockaddrInet4) (comparison, error) {
	var bases, differences []float64
	for range rounds {
		var ns [4]float64
		for i, where := range []string{cgroup, p.sibling, p.sibling, cgroup} {
			if err := p.in(where, func() (err error) {
				ns[i], err = sockets(direct)
				return err
			}); err != nil {
				return comparison{}, err
			}
		}
		bases = append(bases, (ns[1]+ns[2])/2)
		differences = append(differences, (ns[0]+ns[3]-ns[1]-ns[2])/2)
	}
	return comparison{paths.Median(bases), paths.Median(differences)}, nil
}
