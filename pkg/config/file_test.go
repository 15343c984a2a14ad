// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// parse is what an agent started with these arguments would run with.
func parse(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	var c Config
	f := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	c.Flags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return c, c.Validate(f)
}

func mustParse(t *testing.T, args ...string) Config {
	t.Helper()
	c, err := parse(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const head = "apiVersion: portolan.dev/v1\nkind: PortolanConfiguration\n"

func TestAFieldOfTheFileIsAFlag(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "--config", file(t, head+`
kubeconfig: /etc/kubernetes/portolan.conf
nodeName: worker-1
nodeportAddresses: [192.168.100.0/24, localhost]
serviceCidr: 10.96.0.0/12,fd00::/108
maxEndpoints: 1000
xdp: best-effort
externalClusterIp: true
healthzBindAddress: ""
conntrackTcpTimeoutCloseWait: 1h
verbosity: 1
`))
	if c.Kubeconfig != "/etc/kubernetes/portolan.conf" || c.NodeName != "worker-1" || c.MaxEndpoints != 1000 || c.XDP != "best-effort" ||
		!c.ExternalClusterIP || c.HealthzBindAddress != "" || c.Conntrack.TCPCloseWait != time.Hour || c.Verbosity != 1 {
		t.Errorf("%+v", c)
	}
	if !slices.Equal(c.NodePortAddresses, []string{"192.168.100.0/24", "localhost"}) || len(c.CIDRs) != 2 {
		t.Errorf("--nodeport-addresses %v, --service-cidr %v", c.NodePortAddresses, c.CIDRs)
	}
}

func TestTheCommandLineWinsOverTheFile(t *testing.T) {
	t.Parallel()
	path := file(t, head+`
kubeconfig: /from/file
nodeName: from-file
nodeportAddresses: [primary]
xdp: generic
masqueradeAll: true
`)
	c := mustParse(t, "--config", path, "--manifests", "/dir", "--hostname-override", "from-flag", "--nodeport-addresses", "all", "--xdp", "disabled")
	if c.Kubeconfig != "" || c.Manifests != "/dir" || c.NodeName != "from-flag" || c.XDP != "disabled" || !c.MasqueradeAll || !slices.Equal(c.NodePortAddresses, []string{"all"}) {
		t.Errorf("%+v", c)
	}
}

func TestAFileThatCannotBeUsedIsNamedWithItsMistake(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"no kind":             {"nodeName: x\n", `is kind "" of apiVersion ""; write kind PortolanConfiguration of portolan.dev/v1`},
		"another kind":        {"apiVersion: v1\nkind: ConfigMap\n", `is kind "ConfigMap"`},
		"another version":     {"apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n", "kubeproxy.config.k8s.io/v1alpha1"},
		"unknown fields":      {head + "nodename: x\nzap: 1\n", "has no such field: nodename, zap"},
		"config in config":    {head + "config: x\n", "has no such field: config"},
		"a list for a text":   {head + "nodeName: [a, b]\n", "nodeName: is a list; write one value"},
		"an object":           {head + "nodeName: {a: b}\n", "nodeName: is neither text"},
		"a wrong number":      {head + "maxEndpoints: many\n", "maxEndpoints: "},
		"a field twice":       {head + "nodeName: a\nnodeName: b\n", `already set in map`},
		"no YAML":             {head + "nodeName: [\n", "read YAML"},
		"two documents":       {head + "---\n" + head, "several documents"},
		"no object":           {"[]\n", "is no object"},
		"checked like a flag": {head + "xdp: fast\n", "--xdp fast: use one of"},
		"unknown, kube-proxy": {"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nipvs: {stricktARP: true}\nmod: x\n", "has no such field: ipvs.stricktARP, mod"},
		"wrong types":         {"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 5\nnodePortAddresses: x\nconntrack: {min: 1.5, udpTimeout: soon}\n", "clusterCIDR: is no text"},
	} {
		_, err := parse(t, "--config", file(t, c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one that says %q", name, err, c.want)
		}
	}
	if _, err := parse(t, "--config", "/nowhere.yaml"); err == nil || !strings.Contains(err.Error(), "--config: open /nowhere.yaml") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestKubeadmsConfigurationIsTakenWhole(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "--config", "testdata/kubeadm.yaml", "--node-name", "n1")
	if len(c.Ignored) > 0 {
		t.Errorf("it says nothing that is ignored, but %v are named", c.Ignored)
	}
	want := Conntrack{MaxPerCore: 32768, Min: 131072, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}
	if diff := cmp.Diff(want, c.Conntrack); diff != "" {
		t.Errorf("kube-proxy's defaults of connection tracking (-want +got):\n%s", diff)
	}
	if c.Kubeconfig != "/var/lib/kube-proxy/kubeconfig.conf" || len(c.InsideCIDRs) != 2 || c.OOMScoreAdj != -999 ||
		c.HealthzBindAddress != "0.0.0.0:10256" || c.MetricsBindAddress != "127.0.0.1:10249" || len(c.NodePortAddresses) > 0 || c.NodeIP.IsValid() {
		t.Errorf("%+v", c)
	}
}

func TestEveryFieldOfKubeProxysIsHonouredOrNamed(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	fields, err := document(data)
	if err != nil {
		t.Fatal(err)
	}
	delete(fields, "apiVersion")
	delete(fields, "kind")
	p := &proxy{fields: map[string]any{}, ignored: map[string]string{}}
	if unknown := p.flatten("", fields); len(unknown) > 0 {
		t.Errorf("%v are unknown", unknown)
	}
	for path := range proxyFields {
		if _, ok := p.fields[path]; !ok {
			t.Errorf("testdata/full.yaml lacks %s", path)
		}
	}
	c := mustParse(t, "--config", "testdata/full.yaml")
	named := map[string]bool{}
	for _, text := range c.Ignored {
		path, _, _ := strings.Cut(text, " ")
		named[path] = true
	}
	for path, why := range proxyFields {
		if (why != "") != named[path] && path != "detectLocalMode" && path != "nftables.masqueradeAll" && path != "iptables.localhostNodePorts" {
			t.Errorf("%s: named as ignored: %v", path, named[path])
		}
	}
	if !named["detectLocalMode"] || !named["nftables.masqueradeAll"] || !named["iptables.localhostNodePorts"] {
		t.Errorf("what this mode ignores is not named: %v", c.Ignored)
	}
	if c.Kubeconfig != "/etc/kubernetes/kube-proxy.conf" || c.LogFormat != "json" || c.Verbosity != 1 || c.NodeName != "worker-1" ||
		c.NodeIP != netip.MustParseAddr("fd00:192:168:100::1") || c.HealthzBindAddress != "[fd00:192:168:100::1]:10256" || c.MetricsBindAddress != "127.0.0.1:10250" ||
		!c.BindAddressHardFail || !c.Profiling || !c.MasqueradeAll || c.Algorithm != "maglev" || c.OOMScoreAdj != -998 ||
		!slices.Equal(c.NodePortAddresses, []string{"192.168.100.0/24", "primary"}) || fmt.Sprint(c.InsideCIDRs) != "[10.244.0.0/16]" {
		t.Errorf("%+v", c)
	}
	want := Conntrack{MaxPerCore: 65536, TCPEstablished: 2 * time.Hour, UDP: 40 * time.Second, UDPStream: 3 * time.Minute, TCPBeLiberal: true}
	if diff := cmp.Diff(want, c.Conntrack); diff != "" {
		t.Errorf("connection tracking (-want +got):\n%s", diff)
	}
}

func TestTheModeDecidesWhatIsMeant(t *testing.T) {
	t.Parallel()
	const proxyHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	for name, c := range map[string]struct {
		text    string
		check   func(*Config) bool
		ignored string
	}{
		"nftables serves NodePorts on the primary address": {"mode: nftables\n", func(c *Config) bool { return slices.Equal(c.NodePortAddresses, []string{"primary"}) }, "mode"},
		"unless it is told where":                          {"mode: nftables\nnodePortAddresses: [all]\n", func(c *Config) bool { return slices.Equal(c.NodePortAddresses, []string{"all"}) }, "mode"},
		"iptables everywhere":                              {"mode: iptables\n", func(c *Config) bool { return c.NodePortAddresses == nil }, "mode"},
		"iptables without localhost":                       {"iptables: {localhostNodePorts: false}\n", func(c *Config) bool { return slices.Equal(c.NodePortAddresses, []string{"0.0.0.0/0", "::/0"}) }, ""},
		"localhost is another mode's":                      {"mode: nftables\niptables: {localhostNodePorts: false}\n", func(c *Config) bool { return slices.Equal(c.NodePortAddresses, []string{"primary"}) }, "iptables.localhostNodePorts mode"},
		"and not ipvs's":                                   {"mode: ipvs\niptables: {localhostNodePorts: false}\n", func(c *Config) bool { return c.NodePortAddresses == nil }, "iptables.localhostNodePorts mode"},
		"localhost among addresses that are told": {"nodePortAddresses: [127.0.0.0/8]\niptables: {localhostNodePorts: false}\n", func(c *Config) bool { return slices.Equal(c.NodePortAddresses, []string{"127.0.0.0/8"}) },
			"iptables.localhostNodePorts"},
		"masqueradeAll of nftables":      {"mode: nftables\nnftables: {masqueradeAll: true}\n", func(c *Config) bool { return c.MasqueradeAll }, "mode"},
		"masqueradeAll of another mode":  {"nftables: {masqueradeAll: true}\n", func(c *Config) bool { return !c.MasqueradeAll }, "nftables.masqueradeAll"},
		"an ipvs scheduler that is told": {"mode: ipvs\nipvs: {scheduler: rr}\n", func(c *Config) bool { return c.Algorithm == "random" }, "ipvs.scheduler mode"},
		"pods known by their CIDR":       {"detectLocalMode: ClusterCIDR\nclusterCIDR: 10.0.0.0/8\n", func(c *Config) bool { return len(c.InsideCIDRs) == 1 }, ""},
		"pods known otherwise":           {"detectLocalMode: NodeCIDR\n", func(c *Config) bool { return len(c.InsideCIDRs) == 0 }, "detectLocalMode"},
		"connection tracking left alone": {"conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}\n", func(c *Config) bool { return c.Conntrack.MaxPerCore == 0 && c.Conntrack.TCPEstablished == 0 }, ""},
		"the process left alone":         {"oomScoreAdj: 0\n", func(c *Config) bool { return c.OOMScoreAdj == 0 }, ""},
		"protobuf is what is spoken":     {"clientConnection: {contentType: application/vnd.kubernetes.protobuf}\n", func(*Config) bool { return true }, ""},
		"an IPv6 address to bind makes all addresses IPv6": {"bindAddress: '::'\n", func(c *Config) bool {
			return c.HealthzBindAddress == "[::]:10256" && c.MetricsBindAddress == "[::1]:10249" && !c.NodeIP.IsValid()
		}, ""},
		"an address without a port gets kube-proxy's": {"healthzBindAddress: 127.0.0.1\nmetricsBindAddress: '::'\n", func(c *Config) bool {
			return c.HealthzBindAddress == "127.0.0.1:10256" && c.MetricsBindAddress == "[::]:10249"
		}, ""},
		"a section may be empty": {"iptables: null\nlogging: {}\n", func(*Config) bool { return true }, ""},
	} {
		got := mustParse(t, "--config", file(t, proxyHead+c.text))
		if !c.check(&got) {
			t.Errorf("%s: %+v", name, got)
		}
		var names []string
		for _, text := range got.Ignored {
			path, _, _ := strings.Cut(text, " (")
			names = append(names, path)
		}
		if strings.Join(names, " ") != c.ignored {
			t.Errorf("%s: ignored are %q, want %q", name, got.Ignored, c.ignored)
		}
	}
}

func TestAddressesToListenOnAreCompletedOrRefused(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "--healthz-bind-address", "::", "--metrics-bind-address", "")
	if c.HealthzBindAddress != "[::]:10256" || c.MetricsBindAddress != "" {
		t.Errorf("addresses are %q and %q", c.HealthzBindAddress, c.MetricsBindAddress)
	}
	for _, args := range [][]string{
		{"--healthz-bind-address", "somewhere"}, {"--metrics-bind-address", "127.0.0.1:http"}, {"--bind-address", "node"},
		{"--oom-score-adj", "2000"}, {"--conntrack-min", "-1"},
	} {
		if _, err := parse(t, args...); err == nil || !strings.Contains(err.Error(), args[0]+" "+args[1]) {
			t.Errorf("%v: error is %v, want one that names it", args, err)
		}
	}
}

func TestTheDumpIsAFileThatGivesTheSame(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "--config", "testdata/full.yaml")
	text := head
	for name, value := range c.Dump() {
		switch value := value.(type) {
		case []string:
			text += fmt.Sprintf("%s: [%s]\n", name, strings.Join(quoted(value), ", "))
		case string:
			if name != "apiVersion" && name != "kind" && name != "hostnameOverride" {
				text += fmt.Sprintf("%s: %q\n", name, value)
			}
		default:
			text += fmt.Sprintf("%s: %v\n", name, value)
		}
	}
	again := mustParse(t, "--config", file(t, text))
	if diff := cmp.Diff(c.Dump(), again.Dump()); diff != "" {
		t.Errorf("the dump of a configuration that was read from a dump differs (-first +again):\n%s", diff)
	}
}

func quoted(list []string) []string {
	var out []string
	for _, text := range list {
		out = append(out, fmt.Sprintf("%q", text))
	}
	return out
}
