// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What devices do with XDP, as the kernel tells since Linux 6.3
// (include/uapi/linux/netdev.h, generic netlink family "netdev").
const (
	netdevFamily  = "netdev"
	netdevGroup   = "mgmt"
	netdevDevGet  = 1 // NETDEV_CMD_DEV_GET
	netdevIfindex = 1 // NETDEV_A_DEV_IFINDEX
	netdevXDP     = 3 // NETDEV_A_DEV_XDP_FEATURES

	xdpTransmit       = 1 << 2 // NETDEV_XDP_ACT_NDO_XMIT: takes redirected frames
	xdpTransmitFrames = 1 << 6 // NETDEV_XDP_ACT_NDO_XMIT_SG: also of several buffers
)

// XDPTarget tells whether a device takes any frame that XDP programs redirect to
// it. An older kernel does not tell: then no device does.
func XDPTarget(index int) (bool, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask what devices do with XDP: %w", err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	request.AddData(genericHeader{command: netdevDevGet, version: 1})
	request.AddData(nl.NewRtAttr(netdevIfindex, binary.NativeEndian.AppendUint32(nil, uint32(index))))
	answers, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if errors.Is(err, unix.ENODEV) {
		return false, nil // it has gone since
	}
	if err != nil {
		return false, fmt.Errorf("ask what device %d does with XDP: %w", index, err)
	}
	for _, answer := range answers {
		if features, ok := parseXDPFeatures(answer); ok {
			return features&xdpTransmit != 0 && features&xdpTransmitFrames != 0, nil
		}
	}
	return false, nil
}

// genericHeader is struct genlmsghdr. That of the netlink library takes the two
// reserved bytes from behind its end, and the kernel wants them to be zero.
type genericHeader struct{ command, version uint8 }

// Len and Serialize are nl.NetlinkRequestData.
func (genericHeader) Len() int { return nl.SizeofGenlmsg }

func (h genericHeader) Serialize() []byte { return []byte{h.command, h.version, 0, 0} }

// parseXDPFeatures reads what is said of a device.
func parseXDPFeatures(message []byte) (features uint64, ok bool) {
	if len(message) < nl.SizeofGenlmsg {
		return 0, false
	}
	attributes, err := nl.ParseRouteAttr(message[nl.SizeofGenlmsg:])
	if err != nil {
		return 0, false
	}
	for _, a := range attributes {
		if a.Attr.Type == netdevXDP && len(a.Value) == 8 {
			return binary.NativeEndian.Uint64(a.Value), true
		}
	}
	return 0, false
}

// watchXDP sends on the channel whenever a device does something else with XDP
// than before, until ctx ends. Kernels that do not tell say nothing.
func watchXDP(ctx context.Context, changes chan<- struct{}) error {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	socket, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	for _, group := range family.Groups {
		if group.Name != netdevGroup {
			continue
		}
		if err := unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group.ID)); err != nil {
			socket.Close()
			return os.NewSyscallError("setsockopt", err)
		}
	}
	context.AfterFunc(ctx, socket.Close)
	go func() {
		for {
			// What was lost in a burst is told by the next look at the devices.
			if _, _, err := socket.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return // closed, for ctx has ended
			}
			select {
			case changes <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}
