// SPDX-License-Identifier: Apache-2.0

// Package config is the agent's configuration: every flag, its default and its
// meaning, in one validated struct; and the files that set flags: ours, and
// kube-proxy's. It imports the flag library, a YAML reader, and of ours what
// knows how values are written: pkg/node addresses and devices, pkg/service
// algorithms and forwarding modes, pkg/compile the sizes of Maglev tables. The
// invariant it guards: what a file says is honoured, or named as ignored, or an
// error.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/pkg/service"
)

// Config is what the agent runs with. The zero value is not usable: see Flags.
type Config struct {
	// File is --config.
	File       string
	Kubeconfig string
	Manifests  string
	NodeName   string

	CgroupRoot string
	BPFFSRoot  string
	Socket     string
	StateDir   string
	NetnsDir   string

	HealthzBindAddress string
	MetricsBindAddress string

	// This node and this process.
	BindAddress         string
	BindAddressHardFail bool
	Profiling           bool
	OOMScoreAdj         int
	Conntrack           Conntrack
	NodeIP              netip.Addr // BindAddress, unless unspecified

	NodePortAddresses []string
	ServiceCIDRs      []string
	ServiceProxyName  string
	ExternalIPCIDRs   []string
	MaxEndpoints      int

	LogFormat string
	Verbosity int

	// Read from the strings above by Validate.
	NodePorts node.Selection
	CIDRs     []netip.Prefix
	// ExternalIPs is ExternalIPCIDRs, read; nil allows all.
	ExternalIPs []netip.Prefix

	// Traffic from the wire.
	Devices, PodDevices, ClusterCIDRs []string
	XDP, Algorithm, ForwardingMode    string
	MaglevTableSize                   uint32
	MasqueradePorts                   string
	ExternalClusterIP, MasqueradeAll  bool
	InsideCIDRs                       []netip.Prefix // ClusterCIDRs, read
	MasqueradeFirst, MasqueradeLast   uint16         // MasqueradePorts, read
	Spread                            service.Algorithm
	Forwarding                        service.Forwarding
	// Ignored names the fields of File, and flags of kube-proxy's, that mean
	// nothing here, with reasons.
	Ignored []string

	dump map[string]any
}

// Flags declares all flags on a set, with their defaults.
func (c *Config) Flags(f *pflag.FlagSet) {
	f.StringVar(&c.File, "config", "", "`FILE` that sets flags (kind PortolanConfiguration), or a KubeProxyConfiguration; flags of the command line win")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the API server (default: the pod's service account)")
	f.StringVar(&c.Manifests, "manifests", "", "read Services, EndpointSlices, Nodes and ServiceCIDRs from the YAML files of `DIR` instead of an API server, and follow their changes")
	f.StringVar(&c.NodeName, "node-name", "", "`NAME` of this node's Node object, taken in lower case (default: the host name)")
	f.StringVar(&c.NodeName, "hostname-override", "", "the same as --node-name")
	f.StringVar(&c.CgroupRoot, "cgroup-root", "", "cgroup2 `DIR` whose sockets are served (default: the cgroup2 mount)")
	f.StringVar(&c.BPFFSRoot, "bpffs-root", "/sys/fs/bpf/portolan", "`DIR` on a bpffs for the tables and links that outlive the agent")
	f.StringVar(&c.Socket, "socket", "/run/portolan/agent.sock", "unix socket `PATH` for the portolan command")
	f.StringVar(&c.StateDir, "state-dir", "/var/lib/portolan", "`DIR` that outlives a boot, for the API servers' endpoints: by them the agent comes up where the API server's address is a Service; empty: off")
	f.StringVar(&c.NetnsDir, "netns-dir", "/run/netns", "`DIR` of network namespaces in which UDP sockets of stopped backends are closed; needs CAP_SYS_ADMIN; empty: only the agent's own")
	f.StringVar(&c.HealthzBindAddress, "healthz-bind-address", "0.0.0.0:10256", "`ADDRESS` of /healthz, /livez and /readyz; empty: off")
	f.StringVar(&c.MetricsBindAddress, "metrics-bind-address", "127.0.0.1:10249", "`ADDRESS` of /metrics; empty: off")
	f.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "addresses of this node that serve NodePorts: `CIDR`s, or the words primary, all, localhost (default: every address; loopback serves sockets of this node only)")
	f.StringSliceVar(&c.ServiceCIDRs, "service-cidr", nil, "`CIDR`s of ClusterIPs; connects to addresses within that no Service has fail (default: the ServiceCIDR objects)")
	f.StringSliceVar(&c.ExternalIPCIDRs, "external-ip-cidrs", nil, "serve only external IPs within `CIDR`s: whoever may write a Service can claim any address (default: all)")
	f.StringVar(&c.ServiceProxyName, "service-proxy-name", "", "serve only Services whose label service.kubernetes.io/service-proxy-name is `NAME`")
	f.IntVar(&c.MaxEndpoints, "max-endpoints", 65536, "`N` endpoints of a service port are used at most")
	f.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	f.IntVarP(&c.Verbosity, "verbosity", "v", 0, "0: changes of substance; 1: everything")
	c.nodeFlags(f)
	c.wireFlags(f)
}

func (c *Config) wireFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.Devices, "devices", nil, "devices (`PATTERN`, as eth*) whose traffic from outside is translated (default: those with a default route or an address, and overlays)")
	f.StringSliceVar(&c.PodDevices, "pod-devices", nil, "pods' devices (`PATTERN`) whose traffic is translated, for pods whose sockets this node does not see, as of virtual machines")
	f.StringSliceVar(&c.ClusterCIDRs, "cluster-cidr", nil, "`CIDR`s of pods: their traffic counts as the cluster's own wherever it comes in")
	f.StringVar(&c.XDP, "xdp", "disabled", "take packets before the stack: disabled, best-effort, generic or native")
	f.StringVar(&c.MasqueradePorts, "masquerade-ports", "49152-65535", "source ports (`FIRST-LAST`) of traffic that is passed on to endpoints on other nodes; sockets of this node do not get them by chance (ip_local_reserved_ports)")
	f.StringVar(&c.Algorithm, "algorithm", "random", "how flows from outside are spread over endpoints: random, or maglev (the same on every node, and little moves when endpoints come or go); a Service may say otherwise by the annotation portolan.dev/algorithm")
	f.Uint32Var(&c.MaglevTableSize, "maglev-table-size", compile.DefaultMaglevSize, "slots of a Maglev table, 8 bytes each: a prime from 251 to 131071; a hundred times the endpoints keep their shares within 1 %")
	f.StringVar(&c.ForwardingMode, "forwarding-mode", "snat", "how traffic from outside reaches endpoints on other nodes: snat (with this node's address), dsr (in a tunnel; they answer clients directly) or hybrid (dsr for TCP only); a Service may say otherwise by the annotation portolan.dev/forwarding-mode")
	f.BoolVar(&c.ExternalClusterIP, "external-cluster-ip", false, "serve ClusterIPs to clients outside the cluster")
	f.BoolVar(&c.MasqueradeAll, "masquerade-all", false, "endpoints see this node as the source of all traffic from the wire; endpoints on this node, only with --pod-devices")
}

// validateWire checks what concerns traffic from the wire.
func (c *Config) validateWire() error {
	errs := []error{
		node.ParsePatterns("devices", c.Devices), node.ParsePatterns("pod-devices", c.PodDevices),
		oneOf("xdp", c.XDP, "disabled", "best-effort", "generic", "native"),
	}
	var err error
	if c.Spread, err = service.ParseAlgorithm(c.Algorithm); err != nil {
		errs = append(errs, fmt.Errorf("--algorithm %w", err))
	}
	if c.Forwarding, err = service.ParseForwarding(c.ForwardingMode); err != nil {
		errs = append(errs, fmt.Errorf("--forwarding-mode %w", err))
	}
	if err := compile.CheckMaglevSize(c.MaglevTableSize); err != nil {
		errs = append(errs, fmt.Errorf("--maglev-table-size %w", err))
	}
	for _, s := range c.ClusterCIDRs {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--cluster-cidr %s: not a CIDR such as 10.244.0.0/16", s))
			continue
		}
		c.InsideCIDRs = append(c.InsideCIDRs, prefix.Masked())
	}
	if c.MasqueradeFirst, c.MasqueradeLast, err = portRange(c.MasqueradePorts); err != nil {
		errs = append(errs, fmt.Errorf("--masquerade-ports %s: %w", c.MasqueradePorts, err))
	}
	return errors.Join(errs...)
}

// fewestPorts is what a masquerade range must have: each flow to one endpoint
// needs one of its own.
const fewestPorts = 1024

func portRange(s string) (first, last uint16, err error) {
	a, b, ok := strings.Cut(s, "-")
	low, errLow := strconv.ParseUint(a, 10, 16)
	high, errHigh := strconv.ParseUint(b, 10, 16)
	switch {
	case !ok, errLow != nil, errHigh != nil:
		return 0, 0, errors.New("not a range such as 49152-65535")
	case low < 1024:
		return 0, 0, errors.New("ports below 1024 are other servers'")
	case high < low+fewestPorts-1:
		return 0, 0, fmt.Errorf("give at least %d ports: each flow to one endpoint needs one", fewestPorts)
	}
	return uint16(low), uint16(high), nil
}

// Validate completes and checks the configuration after the command line was
// parsed, and returns every mistake at once, each naming its flag.
func (c *Config) Validate(f *pflag.FlagSet) error {
	if err := c.load(f); err != nil {
		return err
	}
	if f.Changed("proxy-mode") {
		c.Ignored = append(c.Ignored, "--proxy-mode ("+proxyFields["mode"]+")")
	}
	errs := []error{c.validateNode(f)}
	if c.Kubeconfig != "" && c.Manifests != "" {
		errs = append(errs, errors.New("--kubeconfig and --manifests exclude each other: the objects come from one of them"))
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			errs = append(errs, fmt.Errorf("--node-name is not given and the host name cannot be read: %w", err))
		}
		c.NodeName = name
	}
	// As kube-proxy does: the kubelet names Nodes in lower case.
	if c.NodeName = strings.ToLower(strings.TrimSpace(c.NodeName)); c.NodeName == "" {
		errs = append(errs, errors.New("--node-name: the name is empty; give the Node object's"))
	}
	var err error
	if c.NodePorts, err = node.ParseSelection(c.NodePortAddresses); err != nil {
		errs = append(errs, err)
	}
	for _, s := range c.ServiceCIDRs {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--service-cidr %s: not a CIDR such as 10.96.0.0/12", s))
			continue
		}
		c.CIDRs = append(c.CIDRs, prefix.Masked())
	}
	for _, s := range c.ExternalIPCIDRs {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--external-ip-cidrs %s: not a CIDR such as 203.0.113.0/24", s))
			continue
		}
		c.ExternalIPs = append(c.ExternalIPs, prefix.Masked())
	}
	if c.MaxEndpoints < 1 || c.MaxEndpoints >= 1<<24 {
		errs = append(errs, fmt.Errorf("--max-endpoints %d: use 1 to %d", c.MaxEndpoints, 1<<24-1))
	}
	errs = append(errs, oneOf("log-format", c.LogFormat, "text", "json"), c.validateWire())
	c.dump = dumpOf(f)
	return errors.Join(errs...)
}

func oneOf(flag, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("--%s %s: use one of %v", flag, value, allowed)
}
