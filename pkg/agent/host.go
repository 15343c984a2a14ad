// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"portolan.dev/portolan/pkg/config"
	"portolan.dev/portolan/pkg/service"
)

// tellOptions says once what of the configuration has no effect.
func (a *Agent) tellOptions() {
	opt := &a.cfg.Options
	if len(opt.Ignored) > 0 {
		a.log.Warn("parts of the configuration are ignored", "file", opt.File, "fields", strings.Join(opt.Ignored, "; "))
	}
}

// withPrimary puts the address that the configuration calls primary first.
func withPrimary(n service.Node, primary netip.Addr) service.Node {
	if primary.IsValid() {
		n.Addresses = append([]netip.Addr{primary}, n.Addresses...)
	}
	return n
}

// tuneHost does to this process and to the kernel's connection tracking what
// kube-proxy would do, if the configuration says so.
func (a *Agent) tuneHost() {
	opt := &a.cfg.Options
	if opt.OOMScoreAdj != 0 {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(opt.OOMScoreAdj)), 0); err != nil {
			a.log.Warn("--oom-score-adj cannot be set; less than before needs CAP_SYS_RESOURCE", "value", opt.OOMScoreAdj, "error", err)
		}
	}
	raised, err := raiseConntrack("/proc/sys/net/netfilter", "/sys/module/nf_conntrack/parameters/hashsize", &opt.Conntrack, runtime.NumCPU())
	if len(raised) > 0 {
		a.log.Info("raised settings of connection tracking", "settings", strings.Join(raised, " "))
	}
	var list []service.Problem
	if err != nil {
		list = append(list, service.Problem{Object: "conntrack", Reason: service.ReasonHost,
			Message: fmt.Sprintf("%v; set what --conntrack-* asks for by sysctl on the node, or leave the flags out", err)})
	}
	a.problems.set("conntrack", list)
}

// mostConntrack is where kube-proxy stops to multiply by processors.
const mostConntrack = 1 << 20

// conntrackMax is what nf_conntrack_max should be at least; 0: anything.
func conntrackMax(c *config.Conntrack, processors int) int {
	if c.MaxPerCore == 0 {
		return 0
	}
	return max(min(c.MaxPerCore*processors, mostConntrack), c.Min)
}

// raiseConntrack raises the settings below dir, and the size of the hash table
// (the file hashsize) with the number of connections. None is ever lowered:
// whoever made one larger had a reason. It returns what it raised, and what
// could not be; a kernel without connection tracking has nothing to raise.
func raiseConntrack(dir, hashsize string, c *config.Conntrack, processors int) (raised []string, err error) {
	seconds := func(d time.Duration) int { return int(d / time.Second) }
	liberal := 0
	if c.TCPBeLiberal {
		liberal = 1
	}
	most := conntrackMax(c, processors)
	var errs []error
	for _, s := range []struct {
		file   string
		wanted int
	}{
		{filepath.Join(dir, "nf_conntrack_max"), most},
		{hashsize, most / 4},
		{filepath.Join(dir, "nf_conntrack_tcp_timeout_established"), seconds(c.TCPEstablished)},
		{filepath.Join(dir, "nf_conntrack_tcp_timeout_close_wait"), seconds(c.TCPCloseWait)},
		{filepath.Join(dir, "nf_conntrack_udp_timeout"), seconds(c.UDP)},
		{filepath.Join(dir, "nf_conntrack_udp_timeout_stream"), seconds(c.UDPStream)},
		{filepath.Join(dir, "nf_conntrack_tcp_be_liberal"), liberal},
	} {
		done, err := raise(s.file, s.wanted)
		errs = append(errs, err)
		if done {
			raised = append(raised, fmt.Sprintf("%s=%d", filepath.Base(s.file), s.wanted))
		}
	}
	return raised, errors.Join(errs...)
}

// raise writes a number to a file that has a smaller one.
func raise(file string, wanted int) (bool, error) {
	if wanted == 0 {
		return false, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", file, err)
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return false, fmt.Errorf("read %s: %w", file, err)
	}
	if have >= wanted {
		return false, nil
	}
	// Not created if it went away in between.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(wanted))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return false, fmt.Errorf("raise %s from %d to %d: %w", file, have, wanted, err)
	}
	return true, nil
}
