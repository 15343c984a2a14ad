// SPDX-License-Identifier: Apache-2.0

package change_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/test/kernel"
	"portolan.dev/portolan/test/world"
)

var modes = []struct {
	name  string
	flags []string
}{{"tc", nil}, {"xdp native", []string{"--xdp", "native"}}}

// onEachMode plays a test with agents that take packets in each way.
func onEachMode(t *testing.T, play func(*stage)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			play(newStage(t, m.flags...))
		})
	}
}

func TestTrafficFollowsARouteThatIsReplaced(t *testing.T) {
	onEachMode(t, func(s *stage) {
		f := s.begin()
		for range 3 {
			s.leaves("eth1", f)
			s.must(s.here.Do(func() error { return s.withdraw("eth1") }))
			s.leaves("eth0", f)
			s.route(s.here, "eth1")
		}
		s.leaves("eth1", f)
		f.end()
	})
}

// withdraw removes the routes to the other node's pods by a device, in the
// present namespace.
func (s *stage) withdraw(device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	v4, v6 := s.there.PodCIDRs()
	return errors.Join(
		netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(v4)}),
		netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(v6)}))
}

// leaves waits until the traffic to the other node's pods leaves by a device.
func (s *stage) leaves(device string, f *traffic) {
	s.t.Helper()
	s.eventually(func() error {
		before := s.sent(device)
		f.goesOn()
		// The calls in the background send, too; so do neighbours, but not this much.
		if n := s.sent(device) - before; n < uint64(len(f.conns)) {
			return fmt.Errorf("%d packets left by %s", n, device)
		}
		return nil
	})
}

func (s *stage) sent(device string) (packets uint64) {
	s.t.Helper()
	s.must(s.here.Do(func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			packets = l.Attrs().Statistics.TxPackets
		}
		return err
	}))
	return packets
}

func TestTrafficFollowsANextHopThatGetsAnotherLinkAddress(t *testing.T) {
	onEachMode(t, func(s *stage) {
		f := s.begin()
		for i := range byte(3) {
			f.lost++ // what is under way to the old address
			s.must(s.there.Do(func() error {
				l, err := netlink.LinkByName("eth1")
				if err != nil {
					return err
				}
				return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 1, i})
			}))
			f.goesOn()
		}
		f.end()
	})
}

func TestADeviceThatGoesAndComesBackIsServedAgain(t *testing.T) {
	onEachMode(t, func(s *stage) {
		f := s.begin()
		f.end()
		s.must(s.here.Do(func() error {
			l, err := netlink.LinkByName("eth1")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}))
		s.serves(s.here, "eth0")
		s.serves(s.there, "eth0")
		f = s.begin() // by eth0
		f.lost++      // the kernel takes the new way before the agent has seen the device
		s.join()
		s.serves(s.here, "eth0", "eth1")
		s.serves(s.there, "eth0", "eth1")
		s.leaves("eth1", f)
		f.end()
	})
}

// What came in by one device and leaves by another does not meet tc.
func TestXDPRedirectsFramesBetweenDevices(t *testing.T) {
	kernel.Need(t, kernel.XDPFeatures)
	t.Parallel()
	s := newStage(t, "--xdp", "native")
	var counters []*world.Counter
	s.must(s.here.Do(func() error {
		for _, device := range []string{"eth0", "eth1"} {
			c, err := s.count(device)
			if err != nil {
				return err
			}
			counters = append(counters, c)
		}
		return nil
	}))
	seen := func() (n uint64) {
		for _, c := range counters {
			n += world.Must(c.Count())(t)
		}
		return n
	}
	for _, addr := range s.nodePorts() {
		for _, proto := range []string{"tcp", "udp"} {
			conn, r := s.client.Open(proto, addr, world.Timeout(lenient))
			s.must(r.Err())
			// It may take the agents a moment to see what the devices can do.
			s.eventually(func() error {
				before := seen()
				const exchanges = 50
				for range exchanges {
					if r := conn.Exchange(); r.Err() != nil {
						return r.Err()
					}
				}
				if n := seen() - before; n > exchanges/2 {
					return fmt.Errorf("%s %s: tc saw %d packets of %d requests and their answers", proto, addr, n, exchanges)
				}
				return nil
			})
			conn.Close()
		}
	}
}

// count counts packets that reach tc ingress of a device.
func (s *stage) count(device string) (*world.Counter, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	c, err := world.NewCounter(ebpf.SchedCLS, ebpf.AttachNone, -1 /* TCX_NEXT */)
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { c.Close() })
	l, err := link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: c.Program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { l.Close() })
	return c, nil
}

// Pods whose sockets no program sees, as virtual machines', are served by their
// devices, which come after the agent.
func TestDevicesOfNewPodsAreServed(t *testing.T) {
	t.Parallel()
	s := newStage(t, "--pod-devices", "veth*")
	for i := range 3 {
		pod := s.pod(s.here, fmt.Sprintf("late%d", i))
		for _, addr := range []string{"10.96.0.10:80", "[fd00:10:96::10]:80"} {
			for _, proto := range []string{"tcp", "udp"} {
				s.eventually(func() error { return unseen(pod, proto, addr) })
			}
		}
	}
}

// unseen asks from a pod's namespace, but not from its cgroup.
func unseen(pod *world.Pod, proto, addr string) error {
	return pod.Do(func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).Dial(proto, addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("who\n")); err != nil {
			return err
		}
		answer := make([]byte, 64)
		n, err := conn.Read(answer)
		if err == nil && n == 0 {
			err = errors.New("an empty answer")
		}
		return err
	})
}
