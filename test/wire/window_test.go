// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

// A segment outside of the window, as an endpoint sends after a network has
// delayed it, is the client's to judge: it gets it from the Service's address,
// and the connection goes on.
func TestASegmentOutsideTheWindowResetsNobody(t *testing.T) {
	const sequence = 0x7ead0000 // once in 50,000 runs it is inside of the window
	both(t, func(t *testing.T, s *stage) {
		vip := netip.MustParseAddrPort("203.0.113.10:80")
		for name, endpoint := range map[string]*world.Pod{"here": s.near[0], "there": s.far[0]} {
			s.serve(webService(), endpoint)
			conn, r := s.client.Open("tcp", vip.String())
			if r.Err() != nil {
				t.Fatalf("endpoint %s: %v", name, r.Err())
			}
			defer conn.Close()
			first := conn.Exchange()
			if first.Err() != nil {
				t.Fatalf("endpoint %s: %v", name, first.Err())
			}
			var ear *net.IPConn
			err := s.host.Do(func() (err error) {
				ear, err = net.ListenIP("ip4:tcp", &net.IPAddr{IP: s.host.IPv4().AsSlice()})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ear.Close()
			if err := endpoint.Do(func() error { return sendSegment(netip.AddrPortFrom(endpoint.IPv4(), 8080), first.Seen, sequence) }); err != nil {
				t.Fatalf("endpoint %s: %v", name, err)
			}
			if err := hearSegment(ear, vip, first.Local.Port(), sequence); err != nil {
				t.Errorf("endpoint %s: the client does not get the segment: %v", name, err)
			}
			if r := conn.Exchange(); r.Err() != nil || r.Backend != first.Backend {
				t.Errorf("endpoint %s: after the segment: %v", name, r)
			}
		}
	})
}

// sendSegment sends a segment of a connection with a sequence number of its own.
func sendSegment(from, to netip.AddrPort, sequence uint32) error {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], sequence)
	b[12], b[13] = 5<<4, 1<<4 // five words, ACK
	source, destination := from.Addr().As4(), to.Addr().As4()
	sum := uint32(6 + len(b))
	for _, part := range [][]byte{source[:], destination[:], b} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	conn, err := net.DialIP("ip4:tcp", &net.IPAddr{IP: source[:]}, &net.IPAddr{IP: destination[:]})
	if err != nil {
		return err
	}
	_, err = conn.Write(b)
	return errors.Join(err, conn.Close())
}

// hearSegment waits for that segment of a connection of the client's port.
func hearSegment(ear *net.IPConn, from netip.AddrPort, port uint16, sequence uint32) error {
	ear.SetDeadline(time.Now().Add(short))
	b := make([]byte, 1500)
	for {
		n, sender, err := ear.ReadFromIP(b) // without the IP header
		if err != nil {
			return err
		}
		if n < 20 || !sender.IP.Equal(from.Addr().AsSlice()) || binary.BigEndian.Uint16(b) != from.Port() || binary.BigEndian.Uint16(b[2:]) != port {
			continue
		}
		if b[13]&(1<<2) != 0 {
			return errors.New("a reset instead")
		}
		if binary.BigEndian.Uint32(b[4:]) == sequence {
			return nil
		}
	}
}
