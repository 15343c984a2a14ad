// SPDX-License-Identifier: Apache-2.0

// Package paths measures two ways to a server against each other: samples of
// both alternate, so that what the machine does meanwhile meets both alike, and
// neighbours are compared. It is for benchmarks and knows no Service.
package paths

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// Way is an address to dial, and the socket at its end: for UDP, where client
// and server take turns on one thread, so that no wake-up is measured.
type Way struct {
	Addr   string
	Server *net.UDPConn
}

// Ratio is the time that the second way takes for each unit of the first one's,
// and the first one's in nanoseconds.
type Ratio struct{ Ratio, Base float64 }

// Alternate takes count samples of each way, in turn, and compares neighbours.
// Which of them comes first alternates too.
func Alternate(count int, direct, through func() (float64, error)) (Ratio, error) {
	var bases, ratios []float64
	for i := range count {
		var x, y float64
		var err1, err2 error
		if i%2 == 0 {
			x, err1 = direct()
			y, err2 = through()
		} else {
			y, err2 = through()
			x, err1 = direct()
		}
		if err := errors.Join(err1, err2); err != nil {
			return Ratio{}, err
		}
		bases, ratios = append(bases, x), append(ratios, y/x)
	}
	return Ratio{Median(ratios), Median(bases)}, nil
}

// Median sorts a copy.
func Median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// Open compares open connections, each sample another one: a connection keeps
// what it drew when it began, such as its buffers' size, as long as it lives.
func Open(count int, network string, direct, through Way, sample func(net.Conn, Way) (float64, error)) (Ratio, error) {
	dial := func(w Way) (float64, error) {
		c, err := net.Dial(network, w.Addr)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return sample(c, w)
	}
	return Alternate(count, func() (float64, error) { return dial(direct) }, func() (float64, error) { return dial(through) })
}

// PingPong is the time of a datagram and its answer.
func PingPong(c net.Conn, w Way) (float64, error) {
	const exchanges = 5000
	buffer := make([]byte, 64)
	begin := time.Now()
	for range exchanges {
		if _, err := c.Write(buffer[:16]); err != nil {
			return 0, err
		}
		n, from, err := w.Server.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return 0, err
		}
		if _, err := w.Server.WriteToUDPAddrPort(buffer[:n], from); err != nil {
			return 0, err
		}
		if _, err := c.Read(buffer); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / exchanges, nil
}

// Requests is the time of a TCP connection with a request, an answer and the
// close, to a server that is served by Answer.
func Requests(count int, direct, through Way) (Ratio, error) {
	return Alternate(count, func() (float64, error) { return requests(direct.Addr) }, func() (float64, error) { return requests(through.Addr) })
}

func requests(addr string) (float64, error) {
	const block = 50
	begin := time.Now()
	for range block {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			return 0, err
		}
		b := []byte{1}
		_, err1 := c.Write(b)
		_, err2 := c.Read(b)
		if err := errors.Join(err1, err2, c.Close()); err != nil {
			return 0, fmt.Errorf("request to %s: %w", addr, err)
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / block, nil
}

// Answer sends one byte back on every connection, until the listener is closed.
func Answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var b [1]byte
		if _, err := c.Read(b[:]); err == nil {
			_, _ = c.Write(b[:])
		}
		c.Close()
	}
}
