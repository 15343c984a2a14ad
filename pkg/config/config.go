// SPDX-License-Identifier: Apache-2.0

// Package config is the agent's configuration: every flag, its default and its
// meaning, in one validated struct. It imports the flag library and nothing of
// ours but pkg/node, which reads address selections.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/pflag"

	"portolan.dev/portolan/pkg/node"
)

// Config is what the agent runs with. The zero value is not usable: see Flags.
type Config struct {
	Kubeconfig string
	Manifests  string
	NodeName   string

	CgroupRoot string
	BPFFSRoot  string
	Socket     string
	NetnsDir   string

	HealthzBindAddress string
	MetricsBindAddress string

	NodePortAddresses []string
	ServiceCIDRs      []string
	ServiceProxyName  string
	MaxEndpoints      int

	LogFormat string
	Verbosity int

	// Read from the strings above by Validate.
	NodePorts node.Selection
	CIDRs     []netip.Prefix

	// What the command line may carry for traffic from the wire.
	Devices, PodDevices, ClusterCIDRs []string
	XDP, Algorithm, ForwardingMode    string
	ExternalClusterIP, MasqueradeAll  bool
	// Ineffective names the flags that were set and change nothing yet.
	Ineffective []string
}

// wire are the flags about traffic that arrives at this node's devices, which
// this version leaves to others.
var wire = []string{"devices", "pod-devices", "cluster-cidr", "xdp", "algorithm", "forwarding-mode", "external-cluster-ip", "masquerade-all"}

// Flags declares all flags on a set, with their defaults.
func (c *Config) Flags(f *pflag.FlagSet) {
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the API server (default: the pod's service account)")
	f.StringVar(&c.Manifests, "manifests", "", "read Services, EndpointSlices, Nodes and ServiceCIDRs from the YAML files of `DIR` instead of an API server, and follow their changes")
	f.StringVar(&c.NodeName, "node-name", "", "`NAME` of this node's Node object (default: the host name)")
	f.StringVar(&c.NodeName, "hostname-override", "", "the same as --node-name")
	f.StringVar(&c.CgroupRoot, "cgroup-root", "", "cgroup2 `DIR` whose sockets are served (default: the cgroup2 mount)")
	f.StringVar(&c.BPFFSRoot, "bpffs-root", "/sys/fs/bpf/portolan", "`DIR` on a bpffs for the tables and links that outlive the agent")
	f.StringVar(&c.Socket, "socket", "/run/portolan/agent.sock", "unix socket `PATH` for the portolan command")
	f.StringVar(&c.NetnsDir, "netns-dir", "/run/netns", "`DIR` of network namespaces in which UDP sockets of stopped backends are closed; needs CAP_SYS_ADMIN; empty: only the agent's own")
	f.StringVar(&c.HealthzBindAddress, "healthz-bind-address", "0.0.0.0:10256", "`ADDRESS` of /healthz, /livez and /readyz; empty: off")
	f.StringVar(&c.MetricsBindAddress, "metrics-bind-address", "127.0.0.1:10249", "`ADDRESS` of /metrics; empty: off")
	f.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", nil, "addresses of this node that serve NodePorts: `CIDR`s, or the words primary, all, localhost (default: every address, for sockets of this node)")
	f.StringSliceVar(&c.ServiceCIDRs, "service-cidr", nil, "`CIDR`s of ClusterIPs; connects to addresses within that no Service has fail (default: the ServiceCIDR objects)")
	f.StringVar(&c.ServiceProxyName, "service-proxy-name", "", "serve only Services whose label service.kubernetes.io/service-proxy-name is `NAME`")
	f.IntVar(&c.MaxEndpoints, "max-endpoints", 65536, "`N` endpoints of a service port are used at most")
	f.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	f.IntVarP(&c.Verbosity, "verbosity", "v", 0, "0: changes of substance; 1: everything")
	c.wireFlags(f)
}

func (c *Config) wireFlags(f *pflag.FlagSet) {
	const later = "; accepted, but no effect yet: traffic from the wire is not translated by this version"
	f.StringSliceVar(&c.Devices, "devices", nil, "devices (`PATTERN`) whose traffic is translated"+later)
	f.StringSliceVar(&c.PodDevices, "pod-devices", nil, "pods' devices (`PATTERN`) whose traffic is translated"+later)
	f.StringSliceVar(&c.ClusterCIDRs, "cluster-cidr", nil, "`CIDR`s of pods"+later)
	f.StringVar(&c.XDP, "xdp", "disabled", "disabled, best-effort, generic or native"+later)
	f.StringVar(&c.Algorithm, "algorithm", "random", "random or maglev"+later)
	f.StringVar(&c.ForwardingMode, "forwarding-mode", "snat", "snat, dsr or hybrid"+later)
	f.BoolVar(&c.ExternalClusterIP, "external-cluster-ip", false, "serve ClusterIPs to clients outside the cluster"+later)
	f.BoolVar(&c.MasqueradeAll, "masquerade-all", false, "masquerade all traffic to Services"+later)
}

// Validate completes and checks the configuration after the command line was
// parsed, and returns every mistake at once, each naming its flag.
func (c *Config) Validate(f *pflag.FlagSet) error {
	var errs []error
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
	if c.MaxEndpoints < 1 || c.MaxEndpoints >= 1<<24 {
		errs = append(errs, fmt.Errorf("--max-endpoints %d: use 1 to %d", c.MaxEndpoints, 1<<24-1))
	}
	errs = append(errs,
		oneOf("log-format", c.LogFormat, "text", "json"),
		oneOf("xdp", c.XDP, "disabled", "best-effort", "generic", "native"),
		oneOf("algorithm", c.Algorithm, "random", "maglev"),
		oneOf("forwarding-mode", c.ForwardingMode, "snat", "dsr", "hybrid"))
	for _, name := range wire {
		if flag := f.Lookup(name); flag != nil && flag.Changed {
			c.Ineffective = append(c.Ineffective, "--"+name)
		}
	}
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
