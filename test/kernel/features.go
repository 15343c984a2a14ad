// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Feature is something that not every kernel of the matrix can do.
type Feature struct {
	Name  string
	on    []Series // where it must work
	probe func() error
}

// The table: what some test asks for. What every supported kernel has is not in
// it, for tests rely on that without asking.
var (
	TCX         = Feature{"tcx", since6_12, haveTCX}
	SockDestroy = Feature{"bpf_sock_destroy", since6_12, kfunc("bpf_sock_destroy")}
	SCTP        = Feature{"SCTP sockets", debian, haveSCTP}
	XDPFeatures = Feature{"XDP features of devices", since6_12, haveXDPFeatures}
	IPIP        = Feature{"ipip devices", debian, haveIPIP}
	MergedUDP   = Feature{"merged datagrams of TUN devices", since6_12, haveMergedUDP}
	Conntrack   = Feature{"connection tracking", debian, haveConntrack}
)

// Features are all of the table.
func Features() []Feature {
	return []Feature{TCX, SockDestroy, SCTP, XDPFeatures, IPIP, MergedUDP, Conntrack}
}

var (
	since6_12 = []Series{Linux6_12, Newest}
	// debian builds it as a module; another configuration may leave it out.
	debian = []Series{Linux6_1, Linux6_12}
)

// Must tells whether kernels of the series have to have the feature.
func (f Feature) Must(s Series) bool { return slices.Contains(f.on, s) }

// Probe tells whether this kernel has the feature: nil, an error that wraps
// ebpf.ErrNotSupported, or another error when it could not be found out.
func (f Feature) Probe() error {
	if err := root(); err != nil {
		return err
	}
	return f.probe()
}

// kfunc looks for a function that the kernel lets programs call.
func kfunc(name string) func() error {
	return func() error {
		spec, err := btf.LoadKernelSpec()
		if err != nil {
			return err
		}
		var function *btf.Func
		if err := spec.TypeByName(name, &function); errors.Is(err, btf.ErrNotFound) {
			return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
		} else if err != nil {
			return err
		}
		return nil
	}
}

// unsupported turns some errors into ebpf.ErrNotSupported.
func unsupported(err error, meaning ...error) error {
	for _, m := range meaning {
		if errors.Is(err, m) {
			return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
		}
	}
	return err
}

// loopbackIndex is that of lo in every network namespace.
const loopbackIndex = 1

func haveTCX() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopbackIndex, Attach: ebpf.AttachTCXIngress})
	return unsupported(err, unix.EINVAL, ebpf.ErrNotSupported)
}

func haveSCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return unsupported(err, unix.EPROTONOSUPPORT)
	}
	return unix.Close(fd)
}

// haveXDPFeatures: the generic netlink family that tells came with 6.3.
func haveXDPFeatures() error {
	_, err := netlink.GenlFamilyGet("netdev")
	return unsupported(err, unix.ENOENT)
}

// haveIPIP adds a device in a namespace of its own, which goes with the thread.
func haveIPIP() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		done <- unsupported(netlink.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "probe"},
			Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 2)}), unix.EOPNOTSUPP)
	}()
	return <-done
}

// haveMergedUDP: a TUN device takes them since 6.2, and says so of its offloads.
// The device goes with its file.
func haveMergedUDP() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return unsupported(err, unix.ENOENT, unix.ENODEV)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("probe%d")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return err
	}
	const checksum, udp4, udp6 = 0x1, 0x20, 0x40 // TUN_F_* of linux/if_tun.h
	return unsupported(unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, checksum|udp4|udp6), unix.EINVAL)
}

// haveConntrack asks for one of the tables, which loads the module: there are no
// settings before.
func haveConntrack() error {
	_, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	return unsupported(err, unix.EPROTONOSUPPORT, unix.EINVAL)
}

// Probed is a feature that the table does not have: for a test's own needs.
func Probed(name string, on []Series, probe func() error) Feature {
	return Feature{Name: name, on: on, probe: probe}
}
