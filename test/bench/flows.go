// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/paths"
)

// opens is how many connections each way are compared.
const opens = 200

// echoService has a TCP and a UDP port on one endpoint, a server on loopback.
func echoService(port uint16) compile.Update {
	name := service.Name{Namespace: "bench", Name: "echo"}
	svc := &service.Service{Name: name, ClusterIPs: []netip.Addr{vip(1)},
		Ports: []service.Port{{Name: "tcp", Protocol: service.TCP, Port: 80}, {Name: "udp", Protocol: service.UDP, Port: 80}}}
	s := &service.EndpointSlice{Name: name, Service: "echo", Family: service.IPv4,
		Ports:     []service.SlicePort{{Name: "tcp", Protocol: service.TCP, Port: port}, {Name: "udp", Protocol: service.UDP, Port: port}},
		Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr("127.0.0.1"), Ready: true, Serving: true}}}
	return compile.Update{Services: map[service.Name]*service.Service{name: svc}, Slices: map[service.Name]*service.EndpointSlice{name: s}}
}

// flows measures established flows through a VIP against the same to the
// endpoint itself: nothing may remain of the translation.
func flows(p *bed) ([]figure, error) {
	d, err := newDataplane(p)
	if err != nil {
		return nil, err
	}
	defer d.close(p)
	stream, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	port := uint16(stream.Addr().(*net.TCPAddr).Port)
	datagrams, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		return nil, err
	}
	defer datagrams.Close()
	go sink(stream)
	if err := d.apply(echoService(port)); err != nil {
		return nil, err
	}
	direct := paths.Way{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String(), Server: datagrams}
	through := paths.Way{Addr: netip.AddrPortFrom(vip(1), 80).String(), Server: datagrams}
	var out []figure
	for _, f := range []struct {
		name, network, unit string
		sample              func(net.Conn, paths.Way) (float64, error)
	}{
		{"connected UDP ping-pong", "udp4", "ns", paths.PingPong},
		{"TCP stream, time for 64 MiB", "tcp4", "ns", push},
	} {
		r, err := paths.Open(opens, f.network, direct, through, f.sample)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		out = append(out, figure{f.name + ", VIP", r.Ratio, "ratio", "direct, " + f.unit, r.Base, 1.02, r.Ratio <= 1.02})
	}
	return out, nil
}

func push(c net.Conn, _ paths.Way) (float64, error) {
	buffer := make([]byte, 1<<20)
	begin := time.Now()
	for range 64 {
		if _, err := c.Write(buffer); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(begin).Nanoseconds()), nil
}

func sink(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buffer := make([]byte, 1<<20)
			for {
				if _, err := c.Read(buffer); err != nil {
					return
				}
			}
		}()
	}
}

// hammer counts connects that fail while endpoints change a thousand times a
// second.
func hammer(p *bed) ([]figure, error) {
	d, err := newDataplane(p)
	if err != nil {
		return nil, err
	}
	defer d.close(p)
	if err := d.apply(objects(0, 100, 10, 100)); err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	counts := make(chan [2]int, 1)
	go func() { counts <- connectUntil(stop) }()
	changes := 0
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); changes++ {
		<-tick.C
		s := slice(0, 0, 10-changes%5, 0)
		if err := d.apply(compile.Update{Slices: map[service.Name]*service.EndpointSlice{s.Name: s}}); err != nil {
			return nil, err
		}
	}
	close(stop)
	total := <-counts
	return []figure{{"connects during 1,000 endpoint changes/s", float64(total[1]), "failed", fmt.Sprintf("of, during %d changes", changes), float64(total[0]), 0, total[1] == 0}}, nil
}

func connectUntil(stop <-chan struct{}) (counts [2]int) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return [2]int{0, 1}
	}
	defer syscall.Close(fd)
	to := &syscall.SockaddrInet4{Port: 80, Addr: vip(0).As4()}
	for {
		select {
		case <-stop:
			return counts
		default:
		}
		for range 100 {
			counts[0]++
			if syscall.Connect(fd, to) != nil {
				counts[1]++
			}
		}
	}
}
