// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/test/world"
)

// A crowd is a hundred endpoints that are one pod: it answers at all addresses
// of a prefix, by the address that was called. $crowd1 and so on stand for the
// endpoints in a slice, crowd for all of them in a step.
const (
	crowds    = 10
	crowdSize = 100
	crowdPort = 7000
)

func crowdAddress(number string, i int) string { return fmt.Sprintf("10.245.%s.%d", number, i+1) }

// crowdEndpoints is the list for a slice.
func crowdEndpoints(number string) string {
	var out []string
	for i := range crowdSize {
		out = append(out, fmt.Sprintf("{addresses: [%s]}", crowdAddress(number, i)))
	}
	return strings.Join(out, ", ")
}

// members are the names in a step, with those of the crowds for "crowd".
func (s *stage) members(names []string) []string {
	if !slices.Equal(names, []string{"crowd"}) {
		return names
	}
	var out []string
	for number := range crowds {
		for i := range crowdSize {
			out = append(out, crowdAddress(fmt.Sprint(number+1), i))
		}
	}
	return out
}

// addCrowds makes the pods answer for the crowds, and routes these there.
func (s *stage) addCrowds() {
	s.t.Helper()
	for number := 1; number <= crowds; number++ {
		p := pods[number%len(pods)]
		prefix := &net.IPNet{IP: net.IPv4(10, 245, byte(number), 0), Mask: net.CIDRMask(24, 32)}
		err := errors.Join(
			s.pods[p.name].Do(func() error {
				return addRoute(&netlink.Route{Dst: prefix, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}, "eth0")
			}),
			s.nodes[p.node].Do(func() error {
				return addRoute(&netlink.Route{Dst: prefix, Gw: s.pods[p.name].IPv4().AsSlice()}, "cni0")
			}),
			s.nodes[1-p.node].Do(func() error {
				return addRoute(&netlink.Route{Dst: prefix, Gw: s.nodes[p.node].IPv4().AsSlice()}, "eth0")
			}),
		)
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for _, pod := range s.pods {
		world.Must(pod.Serve(world.AddressCalled, fmt.Sprintf("tcp:%d", crowdPort)))(s.t)
	}
}

func addRoute(route *netlink.Route, device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	route.LinkIndex = link.Attrs().Index
	return netlink.RouteReplace(route)
}
