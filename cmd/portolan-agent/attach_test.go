// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"portolan.dev/portolan/pkg/api"
	"portolan.dev/portolan/test/world"
)

// occupy attaches a program to the node's cgroup that suffers no other beside
// it, and returns what takes it away.
func (s *stage) occupy() (release func()) {
	s.t.Helper()
	other := world.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(s.t)
	cgroup := world.Must(os.Open(s.node.CgroupRoot()))(s.t)
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: other, Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(cgroup.Fd()), Program: other, Attach: ebpf.AttachCGroupInet4Connect})
		if err := errors.Join(err, cgroup.Close(), other.Close()); err != nil {
			s.t.Fatal(err)
		}
	}
}

// touchNetwork changes something of the node's network that the agent hears of.
func (s *stage) touchNetwork() {
	s.t.Helper()
	err := s.node.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(32, 32)}})
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// serves waits until the uplink is served.
func (s *stage) serves() {
	s.t.Helper()
	world.Eventually(s.t, func() error {
		status, err := api.NewClient(s.node.Socket(), 10*time.Second).Status()
		if err != nil {
			return err
		}
		for _, d := range status.Devices {
			if d.Name == "eth0" && d.Hook != "" && d.Problem == "" {
				return nil
			}
		}
		return fmt.Errorf("of the devices %v eth0 is not served", status.Devices)
	})
}

// notAttached is in the log once for every try.
const notAttached = "attach cgroup/connect4"

func TestAnAgentThatCannotAttachTriesAgain(t *testing.T) {
	t.Parallel()
	s := newStageWithout(t, nodeManifest+dnsService+storeService(32100)+storeSlice("here"))
	release := s.occupy()
	s.start("--healthz-bind-address", "0.0.0.0:10256")
	world.Eventually(t, func() error {
		if !strings.Contains(s.agent.Output(), notAttached) {
			return fmt.Errorf("the log does not say what cannot be attached")
		}
		return nil
	})
	s.touchNetwork()
	tried := strings.Count(s.agent.Output(), notAttached)
	s.wait(func() error { // for longer than two tests of the dataplane take
		if n := strings.Count(s.agent.Output(), notAttached) - tried; n < 5 {
			return fmt.Errorf("tried %d times more", n)
		}
		return nil
	})
	if r := s.eventually(probes, "/readyz", 503).report(t); len(r.Reasons) == 0 {
		t.Errorf("/readyz says %+v", r)
	}
	release()
	s.eventually(probes, "/readyz", 200)
	s.serves()
	s.eventually("127.0.0.1:32100", "/", 200)
}

// One Service that does not fit must not keep devices from being served.
func TestAServiceThatCannotBeWrittenLeavesDevicesServed(t *testing.T) {
	t.Parallel()
	s := newStage(t, nodeManifest+storeService(32100)+storeSlice(slices.Repeat([]string{"here"}, 252)...)+dnsService,
		"--algorithm", "maglev", "--maglev-table-size", "251")
	world.Eventually(t, func() error {
		if !strings.Contains(s.agent.Output(), "252 endpoints do not fit a Maglev table") {
			return fmt.Errorf("the log does not name the Service")
		}
		return nil
	})
	s.serves()
	// Others that can be written mend nothing.
	for i := range 3 {
		s.write("dns.yaml", strings.ReplaceAll(strings.ReplaceAll(dnsService, ": dns", fmt.Sprint(": dns", i)), "96::10", fmt.Sprint("96::2", i)))
		s.wait(func() error {
			if !strings.Contains(s.agent.Output(), fmt.Sprintf("/dns%d ", i)) {
				return fmt.Errorf("the log does not say that dns%d changed", i)
			}
			return nil
		})
	}
	if strings.Contains(s.agent.Output(), "mended: write service port") {
		t.Error("the log says that it is mended")
	}
}
