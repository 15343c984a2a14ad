// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"portolan.dev/portolan/test/world"
)

// echo makes a pod that sends back what it gets, by TCP and UDP.
func (s *stage) echo(n *dataplane, name string) *world.Pod {
	s.t.Helper()
	pod := world.Must(n.AddPod(name))(s.t)
	err := pod.Do(func() error {
		streams, err := net.Listen("tcp", ":8080")
		if err != nil {
			return err
		}
		datagrams, err := net.ListenPacket("udp", ":8080")
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { streams.Close(); datagrams.Close() })
		go echoStreams(streams)
		go echoDatagrams(datagrams)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return pod
}

func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func echoDatagrams(c net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo(buf[:n], from)
	}
}

// dial connects from the client's namespace.
func (s *stage) dial(proto, addr string) (conn net.Conn, err error) {
	err = s.host.Do(func() error {
		d := net.Dialer{Timeout: world.Scaled(short)}
		conn, err = d.Dial(proto, addr)
		return err
	})
	return conn, err
}

func random(n int) []byte {
	data := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func TestLargeDatagramsGoThroughInFragments(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		near, far := s.echo(s.here, "echo1"), s.echo(s.there, "echo2")
		for _, pod := range []*world.Pod{near, far} {
			s.serve(webService(), pod)
			for name, addr := range s.frontends() {
				for _, size := range []int{3000, 9000} {
					if err := s.bounce("udp", addr, random(size)); err != nil {
						t.Errorf("%s, datagram of %d bytes to %s: %v", name, size, pod.IPv4(), err)
					}
				}
			}
		}
	})
}

func TestLargeTransfersComeBackWhole(t *testing.T) {
	both(t, func(t *testing.T, s *stage) {
		near, far := s.echo(s.here, "echo1"), s.echo(s.there, "echo2")
		for _, pod := range []*world.Pod{near, far} {
			s.serve(webService(), pod)
			for name, addr := range s.frontends() {
				if err := s.bounce("tcp", addr, random(4<<20)); err != nil {
					t.Errorf("%s, 4 MiB to %s and back: %v", name, pod.IPv4(), err)
				}
			}
		}
	})
}

// bounce sends data and compares what comes back.
func (s *stage) bounce(proto, addr string, data []byte) error {
	conn, err := s.dial(proto, addr)
	if err != nil {
		return err
	}
	return bounceOver(conn, data)
}

// bounceOver is bounce over a connection, which it closes.
func bounceOver(conn net.Conn, data []byte) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(world.Scaled(10 * time.Second)))
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		if tcp, ok := conn.(*net.TCPConn); ok {
			err = errors.Join(err, tcp.CloseWrite())
		}
		sent <- err
	}()
	back := make([]byte, len(data))
	if _, ok := conn.(*net.UDPConn); ok {
		n, err := conn.Read(back)
		if err != nil {
			return err
		}
		back = back[:n]
	} else if _, err := io.ReadFull(conn, back); err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%d bytes came back, and they differ", len(back))
	}
	return nil
}
