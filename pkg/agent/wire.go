// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"portolan.dev/portolan/loader"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/reconcile"
	"portolan.dev/portolan/pkg/service"
)

// sweepEvery is how often idle flows are looked for. The shortest life of a
// flow is a minute; the look takes a millisecond per 10,000 flows.
const sweepEvery = 5 * time.Second

// outward are the devices whose traffic comes from outside the node: those of
// pods are none, whatever else they look like.
func (a *Agent) outward(links []node.Link) []node.Link {
	pods := map[int]bool{}
	for _, l := range node.Matching(links, a.cfg.Options.PodDevices) {
		pods[l.Index] = true
	}
	return slices.DeleteFunc(node.Outward(links, a.cfg.Options.Devices), func(l node.Link) bool { return pods[l.Index] })
}

// applyDevices has the devices of this node served as they are now. The caller
// holds the lock; tables are attached.
func (a *Agent) applyDevices() {
	opt := &a.cfg.Options
	var devices []loader.Device
	for _, l := range a.outward(a.links) {
		devices = append(devices, loader.Device{Index: l.Index, Name: l.Name, LinkHeader: l.LinkHeader})
	}
	for _, l := range node.Matching(a.links, opt.PodDevices) {
		devices = append(devices, loader.Device{Index: l.Index, Name: l.Name, LinkHeader: l.LinkHeader, Pod: true})
	}
	a.devices = a.loader.SetDevices(devices)
	var found []service.Problem
	for _, d := range a.devices {
		if d.Problem != "" {
			found = append(found, service.Problem{Object: "device " + d.Name, Reason: service.ReasonDevice, Message: d.Problem})
		}
	}
	if len(opt.Devices) > 0 && len(a.outward(a.links)) == 0 {
		found = append(found, service.Problem{Object: "--devices", Reason: service.ReasonDevice,
			Message: fmt.Sprintf("no device matches %s: traffic from outside is not translated", strings.Join(opt.Devices, ","))})
	}
	a.problems.set("devices", found)
}

// wireDevices is what the wire programs have to know of the links.
func (a *Agent) wireDevices() []reconcile.Device {
	outward := map[int]bool{}
	for _, l := range a.outward(a.links) {
		outward[l.Index] = true
	}
	out := make([]reconcile.Device, 0, len(a.links))
	for i := range a.links {
		l := &a.links[i]
		d := reconcile.Device{Index: uint32(l.Index), NoLinkHeader: !l.LinkHeader}
		d.Source4 = sourceOn(l.Addrs, a.facts.Source4, netip.Addr.Is4)
		d.Source6 = sourceOn(l.Addrs, a.facts.Source6, netip.Addr.Is6)
		d.XDPTarget, d.Inward = a.xdpTargets[l.Index], !outward[l.Index]
		out = append(out, d)
	}
	return out
}

// sourceOn chooses this node's address of a family on a device: the one it has
// towards the outside if that is there, else the first, as kernels do for a
// route that prefers none. Later ones may move to another node.
func sourceOn(addrs []netip.Addr, outside netip.Addr, family func(netip.Addr) bool) netip.Addr {
	first := slices.IndexFunc(addrs, family)
	if first < 0 || slices.Contains(addrs, outside) {
		return outside
	}
	return addrs[first]
}

// readXDPTargets finds the outward devices that XDP programs may redirect frames
// to. One that cannot be asked about is none: tc sends by it.
func (a *Agent) readXDPTargets(links []node.Link) map[int]bool {
	out := map[int]bool{}
	if a.cfg.Options.XDP == string(loader.XDPDisabled) {
		return out
	}
	var errs []error
	for _, l := range a.outward(links) {
		takes, err := node.XDPTarget(l.Index)
		out[l.Index] = takes
		errs = append(errs, err)
	}
	a.problems.set("xdp", errorProblem(errors.Join(errs...)))
	return out
}

// sweepFlows removes idle flows until ctx ends.
func (a *Agent) sweepFlows(ctx context.Context) error {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
		begin := time.Now()
		report, err := a.loader.Sweep()
		a.recorder.Swept(time.Since(begin), report.Removed)
		a.problems.set("sweep", errorProblem(err))
		a.mu.Lock()
		a.flows = report.Entries - report.Removed
		a.mu.Unlock()
	}
}

// reservePorts keeps sockets of this node off the masquerade ports.
func (a *Agent) reservePorts() error {
	opt := &a.cfg.Options
	if err := loader.ReservePorts(opt.Socket, opt.MasqueradeFirst, opt.MasqueradeLast); err != nil {
		return fmt.Errorf("reserve --masquerade-ports %s: %w; a socket of this node may be given one, and then no flow has it: write them to net.ipv4.ip_local_reserved_ports", opt.MasqueradePorts, err)
	}
	return nil
}

// forwardingProblems names the settings of the kernel without which endpoints
// on other nodes, or pods, cannot be reached from outside.
func (a *Agent) forwardingProblems() []service.Problem {
	var out []service.Problem
	check := func(file, sysctl string, used bool) {
		data, err := os.ReadFile(file)
		if used && err == nil && strings.TrimSpace(string(data)) == "0" {
			out = append(out, service.Problem{Object: "sysctl " + sysctl, Reason: service.ReasonForwarding,
				Message: "it is 0, so traffic from outside reaches no pod and no other node; set it to 1"})
		}
	}
	check("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward", hasFamily(a.facts.Addrs, netip.Addr.Is4))
	check("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", hasFamily(a.facts.Addrs, netip.Addr.Is6))
	return out
}

func hasFamily(addrs []netip.Addr, family func(netip.Addr) bool) bool {
	for _, addr := range addrs {
		if family(addr) && addr.IsGlobalUnicast() {
			return true
		}
	}
	return false
}

// noticeNode takes note of a change of this node's network; the loop acts.
func (a *Agent) noticeNode(c node.Change) {
	if c.Routes {
		a.reconciler.RoutesChanged()
	}
	if c.Facts {
		notify(a.nodeChanged)
	}
}
