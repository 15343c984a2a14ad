// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/test/world"
)

const (
	// webVIP is where most of the demo's requests go.
	webVIP = "10.96.0.10:80"
	// shopNodePort is the node's address with a NodePort.
	shopNodePort = "192.168.100.1:30080"
	// requests is how many a line of the spread makes.
	requests = 300
	// window is how many requests of the hammer show that all is well, or
	// that a pod gets none any more.
	window = 500
)

// play runs the demo. It returns an error if it could not go on; claims that
// do not hold are the screen's to count.
func (d *demo) play() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	fmt.Fprintf(d.out, "%s  one node, eleven pods, six Services, a client outside, real requests; Linux %s\n",
		d.paint(bold, "Portolan"), unix.ByteSliceToString(uts.Release[:]))
	if err := errors.Join(d.build(), d.writeManifests()); err != nil {
		return err
	}
	if err := d.startAgent("agent"); err != nil {
		return err
	}
	began := time.Now()
	if err := d.until("web answers at "+webVIP, func() (bool, error) {
		// Before the agent has attached, a request to the VIP is lost.
		return d.client.Dial("http", webVIP, world.Timeout(50*time.Millisecond)).OK(), nil
	}); err != nil {
		return err
	}
	took := time.Since(began)
	if err := d.until("shop answers outside at "+shopNodePort, func() (bool, error) {
		return d.outside.Dial("http", shopNodePort, world.Timeout(50*time.Millisecond)).OK(), nil
	}); err != nil {
		return err
	}
	d.heading("Every kind of Service answers", fmt.Sprintf("%d requests a line from a client pod; %d ms after the agent's start",
		requests, took.Milliseconds()))
	for _, act := range []func() error{d.spread, d.changes, d.table, d.keep} {
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

// spread sends requests to every kind of Service.
func (d *demo) spread() error {
	for _, s := range []struct {
		from      *world.Probe
		name, how string
		proto     string
		addr      string
		backends  []string
		opts      []world.Option
	}{
		{d.client, "web", "ClusterIP", "http", webVIP, []string{"web-1", "web-2", "web-3"}, nil},
		{d.client, "", "over IPv6", "http", "[fd00:10:96::10]:80", []string{"web-1", "web-2", "web-3"}, nil},
		{d.client, "dns", "two ports", "udp", "10.96.0.53:53", []string{"dns-1", "dns-2"}, []world.Option{world.Unconnected()}},
		{d.client, "", "", "tcp", "10.96.0.53:53", []string{"dns-1", "dns-2"}, nil},
		{d.client, "shop", "NodePort", "http", shopNodePort, []string{"shop-1", "shop-2"}, nil},
		{d.host, "", "on the node", "http", "127.0.0.1:30080", []string{"shop-1", "shop-2"}, nil},
		{d.outside, "", "from outside", "http", shopNodePort, []string{"shop-1", "shop-2"}, nil},
		{d.client, "store", "LoadBalancer", "http", "203.0.113.10:80", []string{"shop-1", "shop-2"}, nil},
		{d.outside, "", "from outside", "http", "203.0.113.10:80", []string{"shop-1", "shop-2"}, nil},
	} {
		report, err := s.from.DialMany(s.proto, s.addr, requests, s.opts...)
		if err != nil {
			return err
		}
		d.claim(fair(report, s.backends), s.name, s.how, "%-25s%s", s.proto+" "+s.addr, d.bars(report))
	}
	return d.names()
}

// fair reports whether exactly the backends answered, each at least half as
// often as an even spread would have it, and nothing failed.
func fair(r world.Report, backends []string) bool {
	if r.Failed > 0 || len(r.Backends) != len(backends) {
		return false
	}
	for _, name := range backends {
		if r.Backends[name] < r.Total/len(backends)/2 {
			return false
		}
	}
	return true
}

// names shows what stays invisible to clients, what is not touched and what is
// refused.
func (d *demo) names() error {
	zero, one := d.client.Dial("tcp", "10.244.1.31:5432"), d.client.Dial("tcp", "10.244.1.32:5432")
	d.claim(zero.Backend == "db-0" && one.Backend == "db-1", "db", "headless",
		"its pods' own addresses: %s", outcomes(zero, one))

	tcp := d.client.Dial("tcp", "10.96.0.53:53")
	udp := d.client.Dial("udp", "10.96.0.53:53", world.Unconnected())
	vip := netip.MustParseAddrPort("10.96.0.53:53")
	d.claim(tcp.Peer == vip && udp.From == vip, "", "names kept",
		"getpeername says %s, recvfrom says %s", show(tcp.Peer, tcp), show(udp.From, udp))

	r := d.client.Dial("tcp", "10.96.0.10:81")
	d.claim(r.Errno == syscall.ECONNREFUSED && r.Took < time.Second, "web", "unused port",
		"10.96.0.10:81: %v after %d µs", r.Err(), r.Took.Microseconds())
	return nil
}

// outcomes lists who answered, or why no one did.
func outcomes(results ...world.Result) string {
	var parts []string
	for _, r := range results {
		if r.OK() {
			parts = append(parts, r.Backend+" "+r.Peer.String())
		} else {
			parts = append(parts, r.Err().Error())
		}
	}
	return strings.Join(parts, ", ")
}

// show is an address, or why there is none.
func show(a netip.AddrPort, r world.Result) string {
	if !r.OK() {
		return r.Err().Error()
	}
	return a.String()
}

// changes replaces a replica, kills the agent and starts it again while the
// client never stops asking.
func (d *demo) changes() error {
	hammer, err := d.client.Hammer("http", webVIP, world.HammerConfig{Workers: 4, Pause: time.Millisecond})
	if err != nil {
		return err
	}
	t := &traffic{demo: d, hammer: hammer}
	d.heading("Pods come and go", "4 clients keep asking "+webVIP)
	if err := t.replacePod(); err != nil {
		return err
	}
	d.heading("The agent dies", "they go on asking")
	if err := t.withoutAgent(); err != nil {
		return err
	}
	if err := t.restart(); err != nil {
		return err
	}
	report, err := hammer.Stop()
	d.hammered = report.Total
	return err
}

// table prints what an operator sees.
func (d *demo) table() error {
	all, err := d.cli("services")
	if err != nil {
		return err
	}
	d.heading("portolan services", "less the columns NAMESPACE, AGE and SELECTOR")
	d.quote(without(all, "NAMESPACE", "AGE", "SELECTOR"))
	d.check("portolan services", missing(all, "web", "dns", "db", "shop", "store", "wiki",
		"10.96.0.10", "30080", "203.0.113.10", "wiki.example.org"))

	one, err := d.cli("services", "default/dns")
	if err != nil {
		return err
	}
	_, endpoints, _ := strings.Cut(one, "\n\n")
	d.heading("portolan services default/dns", "its endpoints, and why each is in or out")
	d.quote(endpoints)
	d.check("portolan services default/dns", missing(endpoints, "10.244.1.21", "10.244.1.22", "10.244.1.23"))
	return nil
}

// missing says which words text lacks; empty if none.
func missing(text string, words ...string) string {
	var lacks []string
	for _, word := range words {
		if !strings.Contains(text, word) {
			lacks = append(lacks, word)
		}
	}
	if len(lacks) == 0 {
		return ""
	}
	return "does not show " + strings.Join(lacks, ", ")
}

// keep leaves the user in a shell on the node when KEEP is set.
func (d *demo) keep() error {
	if keep := os.Getenv("KEEP"); keep == "" || keep == "0" {
		return nil
	}
	return d.shell()
}
