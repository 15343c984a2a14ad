// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// proxyFields are all fields of a KubeProxyConfiguration (v1alpha1): those that
// are honoured have no text, the others say why they are ignored. The list is
// written here, and kube-proxy's own types are not imported, to keep what a
// privileged daemon is made of small.
var proxyFields = map[string]string{
	"bindAddress":                         "",
	"bindAddressHardFail":                 "",
	"clientConnection.kubeconfig":         "",
	"clientConnection.acceptContentTypes": "the API server is asked for protobuf",
	"clientConnection.contentType":        "the API server is asked for protobuf",
	"clientConnection.qps":                "there are lists and watches only: nothing to limit",
	"clientConnection.burst":              "there are lists and watches only: nothing to limit",
	"clusterCIDR":                         "",
	"configSyncPeriod":                    "changes are taken up as they happen",
	"conntrack.maxPerCore":                "",
	"conntrack.min":                       "",
	"conntrack.tcpBeLiberal":              "",
	"conntrack.tcpCloseWaitTimeout":       "",
	"conntrack.tcpEstablishedTimeout":     "",
	"conntrack.udpStreamTimeout":          "",
	"conntrack.udpTimeout":                "",
	"detectLocal.bridgeInterface":         detectLocalIgnored,
	"detectLocal.interfaceNamePrefix":     detectLocalIgnored,
	"detectLocalMode":                     "",
	"enableProfiling":                     "",
	"featureGates":                        "Portolan has none of these",
	"healthzBindAddress":                  "",
	"hostnameOverride":                    "",
	"iptables.localhostNodePorts":         "",
	"iptables.masqueradeAll":              "",
	"iptables.masqueradeBit":              noRules,
	"iptables.minSyncPeriod":              asTheyHappen,
	"iptables.syncPeriod":                 asTheyHappen,
	"ipvs.excludeCIDRs":                   noRules,
	"ipvs.minSyncPeriod":                  asTheyHappen,
	"ipvs.scheduler":                      "",
	"ipvs.strictARP":                      "no address is put on a device",
	"ipvs.syncPeriod":                     asTheyHappen,
	"ipvs.tcpFinTimeout":                  ownTimeouts,
	"ipvs.tcpTimeout":                     ownTimeouts,
	"ipvs.udpTimeout":                     ownTimeouts,
	"logging.flushFrequency":              "every line is written at once",
	"logging.format":                      "",
	"logging.options":                     "every line is written at once",
	"logging.verbosity":                   "",
	"logging.vmodule":                     "use logging.verbosity",
	"metricsBindAddress":                  "",
	"mode":                                "Services are served by BPF tables, whatever the mode",
	"nftables.masqueradeAll":              "",
	"nftables.masqueradeBit":              noRules,
	"nftables.minSyncPeriod":              asTheyHappen,
	"nftables.syncPeriod":                 asTheyHappen,
	"nodePortAddresses":                   "",
	"oomScoreAdj":                         "",
	"portRange":                           "kube-proxy does not use it either",
	"showHiddenMetricsForVersion":         "no metric is hidden",
	"windowsRunAsService":                 "it is for Windows",
	"winkernel.enableDSR":                 "it is for Windows",
	"winkernel.forwardHealthCheckVip":     "it is for Windows",
	"winkernel.networkName":               "it is for Windows",
	"winkernel.rootHnsEndpointName":       "it is for Windows",
	"winkernel.sourceVip":                 "it is for Windows",
}

const (
	noRules            = "no rules are laid"
	asTheyHappen       = "changes get into the tables as they happen"
	ownTimeouts        = "flows have timeouts of their own"
	detectLocalIgnored = "name the pods' network by clusterCIDR"
)

// proxy is a KubeProxyConfiguration on its way to flags.
type proxy struct {
	fields   map[string]any // by path, those that say something
	settings []Setting
	ignored  map[string]string // reasons by path
	errs     []error
}

// kubeProxy translates a KubeProxyConfiguration. Fields that are absent have
// kube-proxy's defaults where these are not the flags'.
func kubeProxy(fields map[string]any) ([]Setting, []string, error) {
	p := &proxy{fields: map[string]any{}, ignored: map[string]string{}}
	if err := unknownFields(p.flatten("", fields)); err != nil {
		return nil, nil, err
	}
	for path, why := range proxyFields {
		if _, ok := p.fields[path]; ok && why != "" {
			p.ignored[path] = why
		}
	}
	p.addresses()
	p.traffic()
	p.process()
	p.conntrack()
	if err := errors.Join(p.errs...); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(p.settings, func(a, b Setting) int { return strings.Compare(a.Flag, b.Flag) })
	ignored := make([]string, 0, len(p.ignored))
	for path, why := range p.ignored {
		ignored = append(ignored, path+" ("+why+")")
	}
	slices.Sort(ignored)
	return p.settings, ignored, nil
}

// flatten notes the fields that say something by their paths, and returns the
// paths that there are not. What is null, zero or empty says nothing: kubeadm
// writes every field out.
func (p *proxy) flatten(prefix string, fields map[string]any) (unknown []string) {
	for name, value := range fields {
		path := prefix + name
		_, known := proxyFields[path]
		section, nested := value.(map[string]any)
		switch {
		case known:
			if !zero(value) || value != nil && zeroSpeaks(path) {
				p.fields[path] = value
			}
		case prefix == "" && isSection(path) && (nested || value == nil):
			unknown = append(unknown, p.flatten(path+".", section)...)
		default:
			unknown = append(unknown, path)
		}
	}
	return unknown
}

// zeroSpeaks tells of which fields zero is not the default.
func zeroSpeaks(path string) bool {
	return strings.HasPrefix(path, "conntrack.") || path == "oomScoreAdj" || path == "iptables.localhostNodePorts"
}

func isSection(name string) bool {
	for path := range proxyFields {
		if strings.HasPrefix(path, name+".") {
			return true
		}
	}
	return false
}

func zero(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		d, err := time.ParseDuration(v)
		return v == "" || v == "0" || err == nil && d == 0
	case json.Number:
		n, err := v.Float64()
		return err == nil && n == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, part := range v {
			if !zero(part) {
				return false
			}
		}
		return true
	}
	return false
}

func (p *proxy) set(flag string, values ...string) {
	p.settings = append(p.settings, Setting{flag, values})
}

func (p *proxy) wrong(path, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

func (p *proxy) text(path string) string {
	text, ok := p.fields[path].(string)
	if !ok && p.fields[path] != nil {
		p.wrong(path, "is no text")
	}
	return text
}

func (p *proxy) truth(path string) (value, given bool) {
	b, ok := p.fields[path].(bool)
	if !ok && p.fields[path] != nil {
		p.wrong(path, "is neither true nor false")
	}
	return b, ok
}

func (p *proxy) number(path string) (value int, given bool) {
	if p.fields[path] == nil {
		return 0, false
	}
	n, ok := p.fields[path].(json.Number)
	i, err := strconv.Atoi(n.String())
	if !ok || err != nil {
		p.wrong(path, "is no whole number")
	}
	return i, true
}

// addresses are what is listened on, and what serves NodePorts.
func (p *proxy) addresses() {
	bind := p.text("bindAddress")
	if bind != "" {
		p.set("bind-address", bind)
	}
	for _, a := range []struct {
		path, flag string
		port       int
	}{{"healthzBindAddress", "healthz-bind-address", healthzPort}, {"metricsBindAddress", "metrics-bind-address", metricsPort}} {
		// Empty means kube-proxy's default here, and off as a flag.
		if text := p.text(a.path); text != "" {
			if ip, err := netip.ParseAddr(text); err == nil {
				text = net.JoinHostPort(ip.String(), strconv.Itoa(a.port))
			}
			p.set(a.flag, text)
		}
	}
	if yes, _ := p.truth("bindAddressHardFail"); yes {
		p.set("bind-address-hard-fail", "true")
	}
	p.nodePorts()
}

func (p *proxy) nodePorts() {
	const path, localhost = "nodePortAddresses", "iptables.localhostNodePorts"
	mode := p.text("mode")
	loopback, given := p.truth(localhost)
	without := given && !loopback
	switch {
	case !without:
	case mode != "" && mode != "iptables":
		p.ignored[localhost] = "it is of another mode than this file's"
	case p.fields[path] != nil:
		p.ignored[localhost] = path + " says which addresses serve NodePorts"
	}
	switch list, ok := p.fields[path].([]any); {
	case ok:
		values, err := texts(list, true)
		if err != nil {
			p.wrong(path, "%v", err)
		}
		p.set("nodeport-addresses", values...)
	case p.fields[path] != nil:
		p.wrong(path, "is no list")
	case mode == "nftables":
		p.set("nodeport-addresses", "primary") // that mode's default
	case (mode == "" || mode == "iptables") && without:
		// Ranges that cover everything do not mean loopback.
		p.set("nodeport-addresses", "0.0.0.0/0", "::/0")
	}
}

// traffic is who counts as a pod, and how endpoints are chosen.
func (p *proxy) traffic() {
	if cidr := p.text("clusterCIDR"); cidr != "" {
		p.set("cluster-cidr", strings.Split(cidr, ",")...)
	}
	switch mode := p.text("detectLocalMode"); mode {
	case "", "ClusterCIDR":
	default:
		p.ignored["detectLocalMode"] = "pods are known by clusterCIDR, not by " + mode
	}
	// In modes iptables and ipvs it is the field of iptables that counts.
	of := map[string]string{"": "iptables", "iptables": "iptables", "ipvs": "iptables", "nftables": "nftables"}[p.text("mode")]
	for _, section := range []string{"iptables", "nftables"} {
		path := section + ".masqueradeAll"
		if all, _ := p.truth(path); !all {
			continue
		}
		if section == of {
			p.set("masquerade-all", "true")
		} else {
			p.ignored[path] = "it is of another mode than this file's"
		}
	}
	scheduler := p.text("ipvs.scheduler")
	switch {
	case scheduler == "":
	case p.text("mode") != "ipvs":
		p.ignored["ipvs.scheduler"] = "it is of another mode than this file's"
	case scheduler == "sh" || scheduler == "mh":
		p.set("algorithm", "maglev")
	default:
		p.ignored["ipvs.scheduler"] = scheduler + " is taken as random"
	}
}

// debugVerbosity is the verbosity of kube-proxy that is worth our only step.
const debugVerbosity = 4

// process is what concerns the agent itself.
func (p *proxy) process() {
	if file := p.text("clientConnection.kubeconfig"); file != "" {
		p.set("kubeconfig", file)
	}
	if p.text("clientConnection.contentType") == "application/vnd.kubernetes.protobuf" {
		delete(p.ignored, "clientConnection.contentType")
	}
	if name := p.text("hostnameOverride"); name != "" {
		p.set("node-name", name)
	}
	if yes, _ := p.truth("enableProfiling"); yes {
		p.set("profiling", "true")
	}
	oom, given := p.number("oomScoreAdj")
	if !given {
		oom = -999
	}
	p.set("oom-score-adj", strconv.Itoa(oom))
	if format := p.text("logging.format"); format != "" {
		p.set("log-format", format)
	}
	if v, _ := p.number("logging.verbosity"); v >= debugVerbosity {
		p.set("verbosity", "1")
	}
}

func (p *proxy) conntrack() {
	for _, s := range []struct {
		path, flag string
		value      int
	}{{"conntrack.maxPerCore", "conntrack-max-per-core", 32 << 10}, {"conntrack.min", "conntrack-min", 128 << 10}} {
		if n, given := p.number(s.path); given {
			s.value = n
		}
		p.set(s.flag, strconv.Itoa(s.value))
	}
	for _, s := range []struct {
		path, flag string
		value      time.Duration
	}{
		{"conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", 24 * time.Hour},
		{"conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", time.Hour},
		{"conntrack.udpTimeout", "conntrack-udp-timeout", 0},
		{"conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", 0},
	} {
		if text := p.text(s.path); text != "" {
			d, err := time.ParseDuration(text)
			if err != nil {
				p.wrong(s.path, "%q is no duration such as 24h0m0s", text)
			}
			s.value = d
		}
		p.set(s.flag, s.value.String())
	}
	if yes, _ := p.truth("conntrack.tcpBeLiberal"); yes {
		p.set("conntrack-tcp-be-liberal", "true")
	}
}
