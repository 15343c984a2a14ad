// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/bpf"
)

// ClosedUDP counts closed sockets by the way in which they were closed.
type ClosedUDP struct {
	ByProgram int // at once, by bpf_sock_destroy
	ByDiag    int // one by one through SOCK_DIAG
}

// Total is how many were closed.
func (c ClosedUDP) Total() int { return c.ByProgram + c.ByDiag }

// CloseStaleUDP closes the connected UDP sockets whose backend stopped serving
// while others serve, in the network namespace of the given path (such as
// /run/netns/x or /proc/7/ns/net), or in the agent's own when it is empty. It
// returns what it closed. Owners who wait for an answer see ECONNABORTED, others
// EDESTADDRREQ when they send; both connect anew.
//
// Entering another namespace takes CAP_SYS_ADMIN. It may run concurrently with
// everything else.
func (l *Loader) CloseStaleUDP(namespace string) (closed ClosedUDP, err error) {
	err = inNamespace(namespace, func() error {
		iterator, err := l.iterator()
		if err != nil || iterator == nil {
			return err
		}
		defer iterator.Close()
		closed, err = closeListed(iterator)
		return err
	})
	return closed, err
}

// switchCloseUDP has a program used from now on.
func (l *Loader) switchCloseUDP(fresh *ebpf.Program) {
	l.closeLock.Lock()
	defer l.closeLock.Unlock()
	if l.closeUDP != nil {
		l.closeUDP.Close()
	}
	l.closeUDP = fresh
}

// iterator is one of the program in use, which it keeps when that is replaced;
// nil before there is any.
func (l *Loader) iterator() (*link.Iter, error) {
	l.closeLock.Lock()
	defer l.closeLock.Unlock()
	if l.closeUDP == nil {
		return nil, nil
	}
	iterator, err := link.AttachIter(link.IterOptions{Program: l.closeUDP})
	if err != nil {
		return nil, fmt.Errorf("list UDP sockets: %w", err)
	}
	return iterator, nil
}

func closeListed(iterator *link.Iter) (closed ClosedUDP, err error) {
	// Which namespace is listed is decided here, by the thread that opens.
	list, err := iterator.Open()
	if err != nil {
		return closed, fmt.Errorf("list UDP sockets: %w", err)
	}
	defer list.Close()
	data, err := io.ReadAll(list)
	if err != nil {
		return closed, fmt.Errorf("list UDP sockets: %w", err)
	}
	var errs []error
	for r := bytes.NewReader(data); r.Len() > 0; {
		var stale bpf.LbStaleSocket
		if err := binary.Read(r, binary.NativeEndian, &stale); err != nil {
			return closed, fmt.Errorf("read list of UDP sockets: %w", err)
		}
		if stale.Destroyed != 0 {
			closed.ByProgram++
		} else if err := destroy(&stale); err != nil {
			errs = append(errs, err)
		} else {
			closed.ByDiag++
		}
	}
	return closed, errors.Join(errs...)
}

// inNamespace runs f on a thread inside a namespace. Should the thread not get
// home again, it ends with its goroutine instead of misleading others.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("remember own network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		there, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open network namespace %s: %w", path, err)
			return
		}
		defer unix.Close(there)
		if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h.
const sockDestroy = 21

// diagRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type diagRequest struct {
	Family, Protocol, Ext, Pad uint8
	States                     uint32
	SrcPort, DstPort           uint16 // network order, as the socket has them
	Src, Dst                   [4]uint32
	Device                     uint32
	Cookie                     [2]uint32
}

func (d *diagRequest) Len() int { return binary.Size(d) }

func (d *diagRequest) Serialize() []byte {
	var b bytes.Buffer
	// Writing fixed-size fields to memory cannot fail.
	_ = binary.Write(&b, binary.NativeEndian, d)
	return b.Bytes()
}

// destroy closes a socket by SOCK_DIAG: the way of kernels before 6.5, which
// lack bpf_sock_destroy. It needs CONFIG_INET_DIAG_DESTROY.
func destroy(s *bpf.LbStaleSocket) error {
	request := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	diag := &diagRequest{
		Family: uint8(s.Family), Protocol: unix.IPPROTO_UDP, States: ^uint32(0),
		SrcPort: s.SrcPort, DstPort: s.DstPort,
		Src: diagAddress(s.Family, s.Src), Dst: diagAddress(s.Family, s.Dst),
		Device: s.Ifindex,
		Cookie: [2]uint32{uint32(s.Cookie), uint32(s.Cookie >> 32)},
	}
	request.AddData(diag)
	if _, err := request.Execute(unix.NETLINK_INET_DIAG, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("close UDP socket %#x: %w", s.Cookie, err)
	}
	return nil
}

// diagAddress is an address as sock_diag wants it: IPv4 in the first word.
func diagAddress(family uint16, a bpf.LbAddress) [4]uint32 {
	if family == unix.AF_INET {
		return [4]uint32{a.W[3]}
	}
	return a.W
}
