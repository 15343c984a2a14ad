// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// wantedModules are those that the guest or a test may ask for; what they
// depend on comes along. A kernel that has one built in, or not at all, does
// without.
var wantedModules = []string{
	// The channels to the host.
	"virtio_pci", "virtio_console",
	// Devices of the tests' networks.
	"veth", "bridge", "dummy", "vxlan", "geneve", "ipip", "ip6_tunnel", "sit", "tun", "8021q", "macvlan", "ipvlan",
	// Hooks and queues.
	"sch_ingress", "cls_bpf", "act_bpf", "sch_fq", "sch_fq_codel", "act_mirred", "act_gact", "cls_u32", "cls_matchall", "sch_netem", "sch_htb",
	// Neighbours: packet filters and what they track.
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_fib_inet",
	"nft_compat", "nft_reject_inet", "x_tables", "ip_tables", "iptable_nat", "iptable_filter", "ip6table_nat", "ip6table_filter",
	"xt_MASQUERADE", "xt_nat", "xt_conntrack", "xt_comment", "xt_addrtype", "xt_mark", "xt_tcpudp", "xt_multiport", "br_netfilter",
	// Sockets.
	"sctp", "udp_diag", "tcp_diag", "inet_diag", "af_packet_diag", "unix_diag", "sctp_diag",
	// libcrc32c asks for an implementation when it is loaded.
	"crc32c_generic", "crc32c_intel",
}

// module is one of the guest's, as modprobe there needs it.
type module struct {
	Needs   []string // loaded before, as far as the image has them
	Aliases []string // patterns under which the kernel asks for it
	file    string   // on the host
}

// moduleTable holds modules by normalised name.
type moduleTable map[string]*module

// moduleName is the kernel's name for a module file: without directory and
// suffix, with underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(filepath.ToSlash(file)), ".ko")
	return normalise(name)
}

func normalise(name string) string { return strings.ReplaceAll(name, "-", "_") }

// findModules lists the module files below a directory by name.
func findModules(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			files[moduleName(file)] = file
		}
		return err
	})
	return files, err
}

// readModule reads a module file, unpacked.
func readModule(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil || !strings.HasSuffix(file, ".xz") {
		return data, err
	}
	return filter(data, "xz", "-dc")
}

// closure adds the wanted modules and all they depend on to a table. info
// tells what a file says of itself; it is not asked for absent modules.
func closure(wanted []string, files map[string]string, info func(file string) (*module, error)) (moduleTable, error) {
	table := moduleTable{}
	for open := wanted; len(open) > 0; {
		name := normalise(open[0])
		open = open[1:]
		file, there := files[name]
		if !there || table[name] != nil {
			continue
		}
		m, err := info(file)
		if err != nil {
			return nil, fmt.Errorf("read module %s: %w", file, err)
		}
		m.file = file
		table[name] = m
		open = append(open, m.Needs...)
	}
	return table, nil
}

// modinfo reads what a module says of itself, in its section of that name:
// strings "key=value" with a zero byte after each. The packages come without
// the index that depmod would make of them.
func modinfo(data []byte) (*module, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	return parseModinfo(string(text)), nil
}

func parseModinfo(text string) *module {
	m := &module{}
	for _, line := range strings.Split(text, "\x00") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "depends":
			for _, name := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' }) {
				m.Needs = append(m.Needs, normalise(name))
			}
		case "softdep":
			m.Needs = append(m.Needs, softNeeds(value)...)
		case "alias":
			m.Aliases = append(m.Aliases, normalise(value))
		}
	}
	return m
}

// softNeeds are the modules to be loaded before: "pre: a b post: c".
func softNeeds(value string) []string {
	var needs []string
	before := false
	for _, word := range strings.Fields(value) {
		switch {
		case strings.HasSuffix(word, ":"):
			before = word == "pre:"
		case before:
			needs = append(needs, normalise(word))
		}
	}
	return needs
}

// resolve lists what to load for a name or alias, dependencies first. It is
// empty when the image has nothing of that name: built in, or unknown.
func (t moduleTable) resolve(request string) []string {
	request = normalise(request)
	var names []string
	if t[request] != nil {
		names = append(names, request)
	} else {
		names = t.aliased(request)
	}
	var order []string
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if t[name] == nil {
			for _, other := range t.aliased(name) {
				visit(other) // a soft dependency may be an alias
			}
			return
		}
		if seen[name] {
			return
		}
		seen[name] = true
		for _, need := range t[name].Needs {
			visit(need)
		}
		order = append(order, name)
	}
	for _, name := range names {
		visit(name)
	}
	return order
}

// aliased are the modules, by name, with an alias that matches.
func (t moduleTable) aliased(request string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if slices.ContainsFunc(t[name].Aliases, func(alias string) bool {
			matched, err := path.Match(alias, request)
			return err == nil && matched
		}) {
			names = append(names, name)
		}
	}
	return names
}
