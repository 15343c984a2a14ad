// SPDX-License-Identifier: Apache-2.0

// Package loader brings the BPF programs into the kernel and keeps them there:
// it checks what the machine offers, loads and configures programs against a
// set of tables, attaches them by links, pins both, and hands over to a newer
// program or larger tables without a moment in between.
//
// It imports packages maps and bpf and knows no Kubernetes. The invariant it
// guards: what is pinned works without any agent, and a program that is
// attached is only ever replaced by another, never missing.
package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"portolan.dev/portolan/bpf"
	"portolan.dev/portolan/maps"
)

// ErrInUse means that another agent holds the same bpffs directory.
var ErrInUse = errors.New("another agent uses this directory")

// Config says where a dataplane lives.
type Config struct {
	// BPFFSRoot is the directory on a bpffs that holds the pins. It is made
	// when it is missing; its parent must be a mounted bpffs.
	BPFFSRoot string
	// CgroupRoot is the cgroup2 directory whose sockets are served; empty
	// means the root of the machine's cgroup2 mount.
	CgroupRoot string
	// WithoutSockDestroy closes UDP sockets through SOCK_DIAG, as on kernels
	// that lack bpf_sock_destroy: for tests of that way.
	WithoutSockDestroy bool
	// WithoutTCX attaches to devices by clsact, as on kernels that lack tcx:
	// for tests of that way.
	WithoutTCX bool
	// MasqueradeAll makes endpoints see this node as the source of everything
	// that the wire programs serve; endpoints here only with PodDevices.
	MasqueradeAll bool
	// PodDevices says that pods' devices get programs, too.
	PodDevices bool
	// XDP says whether devices get an XDP program, and in which mode.
	XDP XDPMode
}

// Loader owns a directory of pins. Methods are not safe for concurrent use,
// except CloseStaleUDP and Sweep.
type Loader struct {
	cfg      Config
	lock     *os.File
	cgroup   uint64 // id of the cgroup attached to
	cookie   uint64 // of the agent's network namespace
	types    *btf.Spec
	links    map[string]link.Link
	attached map[string]ebpf.ProgramID // by hook

	closeLock sync.Mutex
	closeUDP  *ebpf.Program

	tables  *maps.Set // of the last Attach
	wire    map[variant]*wirePrograms
	devices map[int]*wireDevice // by index
	cleared bool                // filters of an earlier agent were looked for

	sweepLock sync.Mutex
	sweep     *ebpf.Program
}

// Open checks the machine and takes the directory; Close gives it back. Errors
// name the flag and the mend.
func Open(cfg Config) (*Loader, error) {
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	if err := MissingFeatures(); err != nil {
		return nil, err
	}
	if cfg.CgroupRoot == "" {
		found, err := FindCgroup2()
		if err != nil {
			return nil, err
		}
		cfg.CgroupRoot = found
	}
	cgroup, err := cgroupID(cfg.CgroupRoot)
	if err != nil {
		return nil, err
	}
	if err := prepareRoot(cfg.BPFFSRoot); err != nil {
		return nil, err
	}
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's type information: %w; Portolan needs a kernel built with CONFIG_DEBUG_INFO_BTF", err)
	}
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	lock, err := lockRoot(cfg.BPFFSRoot)
	if err != nil {
		return nil, err
	}
	return &Loader{cfg: cfg, lock: lock, cgroup: cgroup, cookie: cookie, types: types,
		links: map[string]link.Link{}, attached: map[string]ebpf.ProgramID{}, wire: map[variant]*wirePrograms{}, devices: map[int]*wireDevice{}}, nil
}

// CgroupRoot is the cgroup directory whose sockets are served.
func (l *Loader) CgroupRoot() string { return l.cfg.CgroupRoot }

// Close lets go of the directory and leaves everything in the kernel as it is.
func (l *Loader) Close() error {
	for _, pinned := range l.links {
		pinned.Close()
	}
	if l.closeUDP != nil {
		l.closeUDP.Close()
	}
	for _, d := range l.devices {
		d.close()
	}
	closeWire(l.wire)
	if l.sweep != nil {
		l.sweep.Close()
	}
	return unlockRoot(l.lock)
}

// TableDir and linkDir are where pins live below the root.
func TableDir(root string) string { return filepath.Join(root, "tables") }
func linkDir(root string) string  { return filepath.Join(root, "links") }

// CheckBPFFS tells whether root is, or could be made, on a mounted bpffs.
func CheckBPFFS(root string) error {
	for parent := root; ; parent = filepath.Dir(parent) {
		var st unix.Statfs_t
		err := unix.Statfs(parent, &st)
		switch {
		case errors.Is(err, fs.ErrNotExist) && parent != "/":
			continue
		case err != nil:
			return fmt.Errorf("--bpffs-root %s: look at %s: %w", root, parent, err)
		case st.Type != unix.BPF_FS_MAGIC:
			return fmt.Errorf("--bpffs-root %s: %s is not on a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf", root, parent)
		}
		return nil
	}
}

func prepareRoot(root string) error {
	if err := CheckBPFFS(root); err != nil {
		return err
	}
	for _, dir := range []string{TableDir(root), linkDir(root)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("--bpffs-root %s: %w", root, err)
		}
	}
	return nil
}

// lockRoot makes sure that tables have one writer: the kernel drops the lock
// when its holder dies, however it dies.
func lockRoot(root string) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("open --bpffs-root: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("--bpffs-root %s: %w; stop it, or give this one a directory of its own", root, ErrInUse)
		}
		return nil, fmt.Errorf("lock --bpffs-root %s: %w", root, err)
	}
	return dir, nil
}

// unlockRoot gives the directory up. Closing the file alone might not: a child
// of this process that has not executed its program yet holds it, too.
func unlockRoot(lock *os.File) error {
	return errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_UN), lock.Close())
}

// Adopt opens the tables that an earlier agent left, or returns
// maps.ErrNotPinned when there are none.
func (l *Loader) Adopt() (*maps.Set, error) {
	set, err := maps.OpenPinned(TableDir(l.cfg.BPFFSRoot), true)
	if errors.Is(err, maps.ErrLayout) {
		return nil, fmt.Errorf("--bpffs-root %s: %w; run the agent version that made them, or `portolan cleanup` (which ends translation until the agent runs again)", l.cfg.BPFFSRoot, err)
	}
	return set, err
}

// hooks are the programs in the order they are attached: what names answers
// back comes before what sends requests away.
var hooks = []string{
	"getpeername4", "getpeername6", "recvmsg4", "recvmsg6",
	"sendmsg4", "sendmsg6", "connect4", "connect6", "post_bind4", "post_bind6",
}

// Attach pins the tables and makes every hook run programs that use them. A
// hook that runs already is switched by one atomic update of its link, so no
// socket call ever finds it empty.
//
// Loading may fail, for want of memory for one, so all of it comes before anything
// is switched: the caller goes on to keep the old tables then, and all programs
// read them still.
func (l *Loader) Attach(set *maps.Set) error {
	fresh, err := l.load(set)
	if err != nil {
		return err
	}
	defer closePrograms(fresh.sock) // links hold their own reference
	if err := l.attachSock(fresh.sock, set); err != nil {
		fresh.closeRest()
		return err
	}
	l.switchCloseUDP(fresh.closeUDP)
	l.switchSweep(fresh.sweep)
	if err := l.switchDevices(fresh.wire); err != nil {
		return err
	}
	l.tables = set
	return nil
}

func (l *Loader) attachSock(programs map[string]*ebpf.Program, set *maps.Set) error {
	if err := set.Pin(TableDir(l.cfg.BPFFSRoot)); err != nil {
		return err
	}
	for _, hook := range hooks {
		program := programs["portolan_"+hook]
		if err := l.attach(hook, program); err != nil {
			return err
		}
		id, err := programID(program)
		if err != nil {
			return err
		}
		l.attached[hook] = id
	}
	return nil
}

// loaded are all programs that are in use, for one set of tables.
type loaded struct {
	sock            map[string]*ebpf.Program
	closeUDP, sweep *ebpf.Program
	wire            map[variant]*wirePrograms
}

// closeRest gives up all but the socket programs.
func (p *loaded) closeRest() {
	p.closeUDP.Close()
	p.sweep.Close()
	closeWire(p.wire)
}

func closePrograms(programs map[string]*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

// load loads every program, or none.
func (l *Loader) load(set *maps.Set) (p loaded, err error) {
	defer func() {
		if err != nil {
			closePrograms(p.sock)
			p.closeRest()
		}
	}()
	if p.sock, err = l.loadSock(set); err != nil {
		return p, err
	}
	if p.closeUDP, err = l.loadCloseUDP(set); err != nil {
		return p, err
	}
	if p.sweep, err = l.loadSweep(set); err != nil {
		return p, err
	}
	p.wire, err = l.loadWires(set)
	return p, err
}

func (l *Loader) loadSock(set *maps.Set) (map[string]*ebpf.Program, error) {
	spec, err := bpf.LoadSock()
	if err != nil {
		return nil, fmt.Errorf("read socket programs: %w", err)
	}
	if err := errors.Join(
		spec.Variables["host_netns_cookie"].Set(l.cookie),
		set.SetConstants(spec),
	); err != nil {
		return nil, fmt.Errorf("configure socket programs: %w", err)
	}
	return l.loadAgainst(spec, set)
}

func (l *Loader) loadCloseUDP(set *maps.Set) (*ebpf.Program, error) {
	spec, err := bpf.LoadClose()
	if err != nil {
		return nil, fmt.Errorf("read socket iterator: %w", err)
	}
	if err := errors.Join(
		spec.Variables["may_destroy"].Set(!l.cfg.WithoutSockDestroy),
		set.SetConstants(spec),
	); err != nil {
		return nil, fmt.Errorf("configure socket iterator: %w", err)
	}
	programs, err := l.loadAgainst(spec, set)
	return programs["portolan_close_udp"], err
}

func (l *Loader) loadAgainst(spec *ebpf.CollectionSpec, set *maps.Set) (map[string]*ebpf.Program, error) {
	replacements := map[string]*ebpf.Map{}
	for name, m := range set.All() {
		if declared := spec.Maps[name]; declared != nil {
			declared.MaxEntries = m.MaxEntries()
			replacements[name] = m
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: replacements,
		Programs:        ebpf.ProgramOptions{KernelTypes: l.types},
	})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w; `portolan check` says what this kernel lacks", err)
	}
	programs := collection.Programs
	collection.Programs = nil
	collection.Close()
	return programs, nil
}

func (l *Loader) attach(hook string, program *ebpf.Program) error {
	path := filepath.Join(linkDir(l.cfg.BPFFSRoot), hook)
	current, err := l.pinnedLink(hook, path)
	if err != nil {
		return err
	}
	if current != nil {
		if err := current.Update(program); err != nil {
			return fmt.Errorf("switch cgroup/%s to a new program: %w", hook, err)
		}
		return nil
	}
	_, attachType := hookType(hook)
	fresh, err := link.AttachCgroup(link.CgroupOptions{Path: l.cfg.CgroupRoot, Attach: attachType, Program: program})
	if err != nil {
		return fmt.Errorf("attach cgroup/%s to --cgroup-root %s: %w", hook, l.cfg.CgroupRoot, err)
	}
	if err := fresh.Pin(path); err != nil {
		fresh.Close()
		return fmt.Errorf("pin link of cgroup/%s: %w", hook, err)
	}
	l.links[hook] = fresh
	return nil
}

// pinnedLink returns the link of a hook, or nil when there is none yet. A link
// to another cgroup is of no use: it is taken away.
func (l *Loader) pinnedLink(hook, path string) (link.Link, error) {
	if known := l.links[hook]; known != nil {
		return known, nil
	}
	pinned, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link of cgroup/%s: %w", hook, err)
	}
	info, err := pinned.Info()
	if err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == l.cgroup {
		l.links[hook] = pinned
		return pinned, nil
	}
	if err := errors.Join(pinned.Unpin(), pinned.Close()); err != nil {
		return nil, fmt.Errorf("remove link of cgroup/%s to another cgroup: %w", hook, err)
	}
	return nil, nil
}

func hookType(hook string) (string, ebpf.AttachType) {
	types := map[string]ebpf.AttachType{
		"connect4": ebpf.AttachCGroupInet4Connect, "connect6": ebpf.AttachCGroupInet6Connect,
		"sendmsg4": ebpf.AttachCGroupUDP4Sendmsg, "sendmsg6": ebpf.AttachCGroupUDP6Sendmsg,
		"recvmsg4": ebpf.AttachCGroupUDP4Recvmsg, "recvmsg6": ebpf.AttachCGroupUDP6Recvmsg,
		"getpeername4": ebpf.AttachCgroupInet4GetPeername, "getpeername6": ebpf.AttachCgroupInet6GetPeername,
		"post_bind4": ebpf.AttachCGroupInet4PostBind, "post_bind6": ebpf.AttachCGroupInet6PostBind,
	}
	return "cgroup/" + hook, types[hook]
}
