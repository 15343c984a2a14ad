// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/pflag"
)

// Conntrack is what the kernel's connection tracking is raised to: Portolan
// does not need it, but kube-proxy is what raises it on most nodes, and the
// pod network goes on using it. 0 leaves a setting as it is.
type Conntrack struct {
	MaxPerCore, Min              int
	TCPEstablished, TCPCloseWait time.Duration
	UDP, UDPStream               time.Duration
	TCPBeLiberal                 bool
}

// Ports of the addresses that are given without one.
const (
	healthzPort = 10256
	metricsPort = 10249
)

func (c *Config) nodeFlags(f *pflag.FlagSet) {
	f.StringVar(&c.BindAddress, "bind-address", "", "this node's primary `ADDRESS` for --nodeport-addresses primary (default: the Node object's first); one of IPv6 makes the other addresses to listen on IPv6 by default")
	f.String("proxy-mode", "", "kube-proxy's `MODE`, which is taken and ignored: "+proxyFields["mode"])
	f.BoolVar(&c.BindAddressHardFail, "bind-address-hard-fail", false, "end when --healthz-bind-address or --metrics-bind-address cannot be had, rather than try again")
	f.BoolVar(&c.Profiling, "profiling", false, "answer /debug/pprof on --metrics-bind-address")
	f.IntVar(&c.OOMScoreAdj, "oom-score-adj", 0, "ask the kernel to spare this process when memory is short: -1000 (never kill) to 1000; 0: as it was started")
	f.IntVar(&c.Conntrack.MaxPerCore, "conntrack-max-per-core", 0, "raise net.netfilter.nf_conntrack_max to `N` a processor (at most 1048576 in all); 0: leave it")
	f.IntVar(&c.Conntrack.Min, "conntrack-min", 0, "raise it to `N` at least, with --conntrack-max-per-core")
	f.DurationVar(&c.Conntrack.TCPEstablished, "conntrack-tcp-timeout-established", 0, "raise nf_conntrack_tcp_timeout_established to it; 0: leave it")
	f.DurationVar(&c.Conntrack.TCPCloseWait, "conntrack-tcp-timeout-close-wait", 0, "raise nf_conntrack_tcp_timeout_close_wait to it; 0: leave it")
	f.DurationVar(&c.Conntrack.UDP, "conntrack-udp-timeout", 0, "raise nf_conntrack_udp_timeout to it; 0: leave it")
	f.DurationVar(&c.Conntrack.UDPStream, "conntrack-udp-timeout-stream", 0, "raise nf_conntrack_udp_timeout_stream to it; 0: leave it")
	f.BoolVar(&c.Conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", false, "have connection tracking mark no TCP packet outside the window as invalid")
}

// validateNode checks what concerns this node, and completes addresses.
func (c *Config) validateNode(f *pflag.FlagSet) error {
	var errs []error
	if c.BindAddress != "" {
		addr, err := netip.ParseAddr(c.BindAddress)
		if err != nil {
			errs = append(errs, fmt.Errorf("--bind-address %s: not an IP address", c.BindAddress))
		}
		addr = addr.Unmap()
		if addr.Is6() {
			defaultTo(f, "healthz-bind-address", "[::]:10256")
			defaultTo(f, "metrics-bind-address", "[::1]:10249")
		}
		if !addr.IsUnspecified() {
			c.NodeIP = addr
		}
	}
	for _, a := range []struct {
		flag string
		addr *string
		port int
	}{{"healthz-bind-address", &c.HealthzBindAddress, healthzPort}, {"metrics-bind-address", &c.MetricsBindAddress, metricsPort}} {
		if err := complete(a.addr, a.port); err != nil {
			errs = append(errs, fmt.Errorf("--%s %s: %w", a.flag, *a.addr, err))
		}
	}
	if c.OOMScoreAdj < -1000 || c.OOMScoreAdj > 1000 {
		errs = append(errs, fmt.Errorf("--oom-score-adj %d: use -1000 to 1000", c.OOMScoreAdj))
	}
	if c.Conntrack.MaxPerCore < 0 || c.Conntrack.Min < 0 {
		errs = append(errs, fmt.Errorf("--conntrack-max-per-core %d, --conntrack-min %d: use 0 (leave it) or more", c.Conntrack.MaxPerCore, c.Conntrack.Min))
	}
	return errors.Join(errs...)
}

// defaultTo changes the default of a flag that nobody has set.
func defaultTo(f *pflag.FlagSet, name, value string) {
	if flag := f.Lookup(name); flag != nil && !flag.Changed {
		// A default is a value that the flag takes.
		_ = flag.Value.Set(value)
	}
}

// complete appends a port to an address that has none.
func complete(addr *string, port int) error {
	if *addr == "" {
		return nil
	}
	if ip, err := netip.ParseAddr(*addr); err == nil {
		*addr = net.JoinHostPort(ip.String(), strconv.Itoa(port))
		return nil
	}
	_, p, err := net.SplitHostPort(*addr)
	if err != nil {
		return errors.New("not an address such as 0.0.0.0:10256 or [::]:10256; empty: off")
	}
	if _, err := strconv.ParseUint(p, 10, 16); err != nil {
		return fmt.Errorf("%q is no port", p)
	}
	return nil
}
