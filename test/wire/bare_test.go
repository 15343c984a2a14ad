// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

// bareMTU leaves room for one more IPv4 header.
const bareMTU = 1480

// bareKind is a kind of overlay whose packets begin with the IP header.
type bareKind struct {
	name string
	six  bool // carries IPv6, too
	add  func(s *stage)
	// hop is the gateway of routes by the device.
	hop func(other *dataplane) netip.Addr
}

var bareKinds = []bareKind{
	{"tun", true, (*stage).addTUN, func(*dataplane) netip.Addr { return netip.Addr{} }},
	{"ipip", false, (*stage).addIPIP, func(other *dataplane) netip.Addr { return other.IPv4() }},
}

const bareName = "bare0"

// addTUN joins the nodes by two devices whose packets this process carries.
func (s *stage) addTUN() {
	s.t.Helper()
	here, there := s.openTUN(s.here, 0), s.openTUN(s.there, 0)
	go carry(here, there)
	go carry(there, here)
}

// openTUN adds a TUN device, with more flags than those that it needs.
func (s *stage) openTUN(n *dataplane, flags uint16) *os.File {
	s.t.Helper()
	fd := -1
	err := n.Do(func() (err error) {
		// A device of the namespace that the file was opened in.
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(bareName)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	file := os.NewFile(uintptr(fd), bareName)
	if err != nil {
		s.t.Fatalf("add TUN device: %v", err)
	}
	s.t.Cleanup(func() { file.Close() })
	return file
}

// carry hands on packets until a device is gone.
func carry(from, to *os.File) {
	packet := make([]byte, 1<<16)
	for {
		n, err := from.Read(packet)
		if err != nil {
			return
		}
		if _, err := to.Write(packet[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// addIPIP gives each node a device as Calico's: the route's gateway names the
// other end.
func (s *stage) addIPIP() {
	s.t.Helper()
	kernel.Need(s.t, kernel.IPIP)
	for _, n := range []*dataplane{s.here, s.there} {
		if err := n.Do(func() error {
			return netlink.LinkAdd(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: bareName}, Local: n.IPv4().AsSlice()})
		}); err != nil {
			s.t.Fatalf("add IPIP device: %v", err)
		}
	}
}

// bareOverlay lays an overlay between the nodes, by which each reaches the
// other's pods.
func (s *stage) bareOverlay(k bareKind) {
	s.t.Helper()
	k.add(s)
	for n, other := range map[*dataplane]*dataplane{s.here: s.there, s.there: s.here} {
		if err := n.Do(func() error { return n.useBare(k, other) }); err != nil {
			s.t.Fatal(err)
		}
		n.reconciler.RoutesChanged()
		if served := fmt.Sprint(n.devices); len(n.devices) != 2 || !strings.Contains(served, bareName) {
			s.t.Fatalf("devices served: %s, want eth0 and %s", served, bareName)
		}
	}
}

func (n *dataplane) useBare(k bareKind, other *dataplane) error {
	dev, err := netlink.LinkByName(bareName)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetMTU(dev, bareMTU), netlink.LinkSetUp(dev)); err != nil { // up, for routes
		return err
	}
	own4, own6 := n.PodCIDRs()
	peer4, peer6 := other.PodCIDRs()
	if err := errors.Join(addOverlayAddr(dev, own4), routeByBare(k, other, peer4)); err != nil {
		return err
	}
	if k.six {
		if err := errors.Join(addOverlayAddr(dev, own6), routeByBare(k, other, peer6)); err != nil {
			return err
		}
	}
	return n.serveBare(dev)
}

// serveBare has traffic that comes by the device served, in the thread's namespace.
func (n *dataplane) serveBare(dev netlink.Link) error {
	n.config.Devices = []reconcile.Device{{Index: uint32(dev.Attrs().Index), NoLinkHeader: true}}
	return errors.Join(netlink.LinkSetUp(dev), n.reconciler.ApplyNode(n.config), n.attachDevices())
}

// routeByBare sends to a network over the overlay, in the thread's namespace.
func routeByBare(k bareKind, other *dataplane, to netip.Prefix) error {
	dev, err := netlink.LinkByName(bareName)
	if err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: &net.IPNet{IP: to.Masked().Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}}
	if hop := k.hop(other); hop.IsValid() {
		route.Gw, route.Flags = hop.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	return wrap("route to "+to.String(), netlink.RouteReplace(route))
}

// carried are the ways to the Service that an overlay of the kind carries.
func (s *stage) carried(k bareKind) map[string]string {
	frontends := s.frontends()
	for name := range frontends {
		if strings.HasSuffix(name, "IPv6") && !k.six {
			delete(frontends, name)
		}
	}
	return frontends
}

func forBareKinds(t *testing.T, test func(t *testing.T, s *stage, k bareKind)) {
	for _, k := range bareKinds {
		for _, m := range some(t, modes[0], modes[1], modes[3]) {
			t.Run(k.name+", "+m.name, func(t *testing.T) {
				t.Parallel()
				s := newStage(t, m)
				s.bareOverlay(k)
				test(t, s, k)
			})
		}
	}
}

// Requests leave by a device without a link header, and answers come in by it
// and have to go on by one with.
func TestEndpointsBehindAnOverlayWithoutLinkHeadersAreReached(t *testing.T) {
	forBareKinds(t, func(t *testing.T, s *stage, k bareKind) {
		echo := s.echo(s.there, "echo")
		for _, forwarding := range []service.Forwarding{service.SNAT, service.DSR} {
			svc := webService()
			svc.Forwarding = forwarding
			s.serve(svc, s.near[0], s.far[0])
			for name, addr := range s.carried(k) {
				for _, proto := range []string{"tcp", "udp"} {
					report := world.Must(s.client.DialMany(proto, addr, 20))(t)
					if report.Failed > 0 || len(report.Backends) != 2 {
						t.Fatalf("%s %s, mode %d: %d failed, answers %v, first failure %+v", name, proto, forwarding, report.Failed, report.Backends, report.Failures)
					}
				}
			}
			s.serve(svc, echo)
			for name, addr := range s.carried(k) {
				if err := s.bounce("tcp", addr, random(1<<20)); err != nil {
					t.Errorf("%s, mode %d, 1 MiB: %v", name, forwarding, err)
				}
				to := netip.MustParseAddrPort(addr)
				want := bareMTU
				switch {
				case forwarding == service.DSR && to.Addr().Is4():
					want -= 20
				case forwarding == service.DSR:
					want -= 40
				}
				if mtu, err := s.pathMTU(to, 1500); err != nil || mtu != want {
					t.Errorf("%s, mode %d: the client knows MTU %d (%v), want %d", name, forwarding, mtu, err, want)
				}
			}
		}
	})
}

// Clients themselves may come by such a device: to endpoints here, to those
// that the same device leads to, and to none.
func TestClientsBehindAnOverlayWithoutLinkHeadersAreServed(t *testing.T) {
	forBareKinds(t, func(t *testing.T, s *stage, k bareKind) {
		s.detour(k)
		for pod, name := range map[*world.Pod]string{s.near[0]: "here", s.far[0]: "elsewhere"} {
			s.serveOn([]*dataplane{s.here}, webService(), pod)
			for _, addr := range loadBalancers(k) {
				for _, proto := range []string{"tcp", "udp"} {
					if r := s.client.Dial(proto, addr); r.Err() != nil {
						t.Fatalf("%s %s, endpoint %s: %v", proto, addr, name, r.Err())
					}
				}
			}
		}
		s.serveOn([]*dataplane{s.here}, webService())
		for _, addr := range loadBalancers(k) {
			for _, proto := range []string{"tcp", "udp"} {
				if r := s.client.Dial(proto, addr); !errors.Is(r.Err(), unix.ECONNREFUSED) {
					t.Fatalf("%s %s without endpoints: %v, want %v", proto, addr, r.Err(), unix.ECONNREFUSED)
				}
			}
			if err := s.host.Do(func() error { return ping(netip.MustParseAddrPort(addr).Addr()) }); err != nil {
				t.Error(err)
			}
		}
	})
}

// detour makes the client's packets to load balancer addresses, and the
// answers, go through the other node and over the overlay.
func (s *stage) detour(k bareKind) {
	s.t.Helper()
	s.routeBy(s.there, "203.0.113.0/24", "2001:db8:1b::/64")
	addrs, networks := []netip.Addr{s.host.IPv4()}, []string{"203.0.113.0/24"}
	if k.six {
		addrs, networks = append(addrs, s.host.IPv6()), append(networks, "2001:db8:1b::/64")
	}
	for i := range addrs {
		err := errors.Join(
			s.there.Do(func() error { return routeByBare(k, s.here, netip.MustParsePrefix(networks[i])) }),
			s.here.Do(func() error { return routeByBare(k, s.there, netip.PrefixFrom(addrs[i], addrs[i].BitLen())) }),
		)
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.here.reconciler.RoutesChanged()
}

func loadBalancers(k bareKind) []string {
	if k.six {
		return []string{"203.0.113.10:80", "[2001:db8:1b::10]:80"}
	}
	return []string{"203.0.113.10:80"}
}
