// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/world"
)

// overlay lays a VXLAN between the nodes as flannel does: a device a node with
// the first address of the pods' network, permanent neighbours, and a route to
// the other node's pods by the other's device.
func (s *stage) overlay(m mode) {
	s.t.Helper()
	macs := map[*dataplane]net.HardwareAddr{s.here: {2, 0, 0, 0, 0, 1}, s.there: {2, 0, 0, 0, 0, 2}}
	for n, other := range map[*dataplane]*dataplane{s.here: s.there, s.there: s.here} {
		own4, own6 := n.PodCIDRs()
		peer4, peer6 := other.PodCIDRs()
		err := n.Do(func() error {
			uplink, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			dev := &netlink.Vxlan{
				LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", MTU: 1450, HardwareAddr: macs[n]},
				VxlanId:   1, VtepDevIndex: uplink.Attrs().Index, SrcAddr: n.IPv4().AsSlice(), Port: 8472,
			}
			if err := netlink.LinkAdd(dev); err != nil {
				return fmt.Errorf("add vxlan: %w", err)
			}
			return errors.Join(
				addOverlayAddr(dev, own4), addOverlayAddr(dev, own6),
				netlink.LinkSetUp(dev),
				wrap("forward to the other node", netlink.NeighAppend(&netlink.Neigh{LinkIndex: dev.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
					State: netlink.NUD_PERMANENT, IP: other.IPv4().AsSlice(), HardwareAddr: macs[other]})),
				routeOver(dev, peer4, macs[other]), routeOver(dev, peer6, macs[other]),
			)
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for _, n := range []*dataplane{s.here, s.there} {
		if err := n.Do(n.attachDevices); err != nil {
			s.t.Fatal(err)
		}
		n.reconciler.RoutesChanged()
		uplink := m.serves(s.t)
		tunnel := uplink
		tunnel.Name = "flannel.1"
		if uplink.XDP == "native" { // which a VXLAN device cannot do
			tunnel.XDP = "generic"
		}
		if want := []loader.DeviceStatus{uplink, tunnel}; !reflect.DeepEqual(n.devices, want) {
			s.t.Fatalf("devices served: %+v, want %+v", n.devices, want)
		}
	}
}

func addOverlayAddr(dev netlink.Link, pods netip.Prefix) error {
	first := pods.Masked().Addr()
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: first.AsSlice(), Mask: net.CIDRMask(first.BitLen(), first.BitLen())}}
	if first.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return wrap("add address", netlink.AddrAdd(dev, addr))
}

func wrap(what string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// routeOver sends to the other node's pods by its device.
func routeOver(dev *netlink.Vxlan, pods netip.Prefix, mac net.HardwareAddr) error {
	peer := pods.Masked().Addr()
	to := &net.IPNet{IP: peer.AsSlice(), Mask: net.CIDRMask(pods.Bits(), peer.BitLen())}
	family := unix.AF_INET
	if peer.Is6() { // the first address of a network is every router's there
		family, peer = unix.AF_INET6, netip.MustParseAddr(fmt.Sprintf("fe80::ff:fe00:%x", mac[5]))
	}
	return errors.Join(
		wrap("add neighbour "+peer.String(), netlink.NeighSet(&netlink.Neigh{LinkIndex: dev.Index, Family: family, State: netlink.NUD_PERMANENT, IP: peer.AsSlice(), HardwareAddr: mac})),
		wrap("add route to "+pods.String(), netlink.RouteReplace(&netlink.Route{LinkIndex: dev.Index, Dst: to, Gw: peer.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})))
}

// Requests leave by the overlay's device and answers come in by it, or, with
// direct server return, leave the other node by its uplink.
func TestEndpointsBehindAVXLANOverlayAreReached(t *testing.T) {
	for name, forwarding := range map[string]service.Forwarding{"masqueraded": service.SNAT, "dsr": service.DSR} {
		for _, m := range some(t, append(modes[:3:3], mode{"xdp best-effort", loader.XDPBestEffort, true})...) {
			t.Run(m.name+", "+name, func(t *testing.T) {
				t.Parallel()
				s := newStage(t, m)
				s.overlay(m)
				svc := webService()
				svc.Forwarding = forwarding
				echo := s.echo(s.there, "echo")
				s.serve(svc, s.near[0], s.far[0])
				for name, addr := range s.frontends() {
					for _, proto := range []string{"tcp", "udp"} {
						report := world.Must(s.client.DialMany(proto, addr, 40))(t)
						if report.Failed > 0 || len(report.Backends) != 2 {
							t.Errorf("%s %s: %d failed, answers %v, first failure %+v", name, proto, report.Failed, report.Backends, report.Failures)
						}
					}
				}
				s.serve(svc, echo)
				for name, addr := range s.frontends() {
					if err := s.bounce("tcp", addr, random(1<<20)); err != nil {
						t.Errorf("%s, 1 MiB: %v", name, err)
					}
				}
			})
		}
	}
}
