// SPDX-License-Identifier: Apache-2.0

// Package manifest reads Services from a directory of YAML files, so that
// Portolan runs and is tested without a cluster. Changes of files are taken up
// as they happen.
//
// It imports pkg/source and pkg/service. The invariant it guards: a file that
// cannot be read leaves what was last read of it in force.
package manifest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// Config says what to read.
type Config struct {
	Dir       string
	NodeName  string
	ProxyName string
	// ExternalIPs are those that may be served; nil: all.
	ExternalIPs []netip.Prefix
	Logger      *slog.Logger
}

// Source follows a directory.
type Source struct {
	cfg     Config
	convert source.Converter
	files   map[string]*file
	told    objects // what the queue was told
	toldBad map[string][]service.Problem
}

// file is one file as it was last read.
type file struct {
	stamp    stamp
	objects  objects
	problems []service.Problem
}

// stamp changes whenever a file's content may have.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// rescan is how often the directory is read although no event came: some file
// systems send none.
const rescan = time.Second

// New returns a source for a directory; the directory may come later.
func New(cfg Config) (*Source, error) {
	if cfg.Dir == "" {
		return nil, errors.New("--manifests: name a directory")
	}
	return &Source{
		cfg: cfg, convert: source.Converter{ProxyName: cfg.ProxyName, ExternalIPs: cfg.ExternalIPs},
		files: map[string]*file{}, told: newObjects(), toldBad: map[string][]service.Problem{},
	}, nil
}

// Run tells the queue of all objects, and of their changes until ctx ends.
func (s *Source) Run(ctx context.Context, q *source.Queue) error {
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch --manifests %s: %w", s.cfg.Dir, err)
	}
	events := os.NewFile(uintptr(watch), "inotify")
	defer events.Close()
	changed := make(chan struct{}, 1)
	go drain(events, changed)
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		// Watching the same directory again changes nothing; a directory that
		// was replaced gets a new watch.
		_, _ = unix.InotifyAddWatch(watch, s.cfg.Dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ATTRIB|unix.IN_CREATE)
		s.read(q)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// drain reads events away until the file is closed; what they say is found out
// by looking.
func drain(events *os.File, changed chan<- struct{}) {
	buffer := make([]byte, 64<<10)
	for {
		if _, err := events.Read(buffer); err != nil {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// read brings the queue up to date with the directory.
func (s *Source) read(q *source.Queue) {
	status := source.ResourceStatus{Resource: "manifests", Connected: true, Since: time.Now(), LastEvent: time.Now()}
	bad := map[string][]service.Problem{}
	if err := s.scan(); err != nil {
		object := "directory " + s.cfg.Dir
		bad[object] = []service.Problem{{Object: object, Reason: service.ReasonUnreadable,
			Message: fmt.Sprintf("cannot be read, its last state stays: %v; see --manifests", err)}}
		status.Connected, status.Error = false, err.Error()
		s.tellProblems(q, bad)
		q.SetStatus(status)
		return
	}
	all := s.gather(bad)
	status.Objects = all.count()
	q.SetStatus(status)
	s.tell(q, all, bad)
}

// scan reads the files that changed.
func (s *Source) scan() error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if !isManifest(name) {
			continue
		}
		info, err := os.Stat(filepath.Join(s.cfg.Dir, name))
		if err != nil || info.IsDir() {
			continue
		}
		seen[name] = true
		now := stampOf(info)
		f := s.files[name]
		if f == nil {
			f = &file{objects: newObjects()}
			s.files[name] = f
		} else if f.stamp == now {
			continue
		}
		f.stamp = now
		s.parse(name, f)
	}
	for name := range s.files {
		if !seen[name] {
			delete(s.files, name)
		}
	}
	return nil
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func stampOf(info os.FileInfo) stamp {
	return stamp{modified: info.ModTime(), size: info.Size(), inode: inode(info)}
}

// parse reads one file. On failure its objects stay as they were.
func (s *Source) parse(name string, f *file) {
	path := filepath.Join(s.cfg.Dir, name)
	data, err := os.ReadFile(path)
	if err == nil {
		d := decoder{convert: s.convert, node: s.cfg.NodeName, file: name, objects: newObjects()}
		if err = d.decode(data); err == nil {
			f.objects, f.problems = d.objects, d.problems
			return
		}
	}
	f.problems = []service.Problem{{Object: "file " + name, Reason: service.ReasonUnreadable,
		Message: fmt.Sprintf("not read, its last good state stays: %v", err)}}
}

// gather puts the files together; what an earlier file has, a later one cannot
// change.
func (s *Source) gather(bad map[string][]service.Problem) objects {
	names := make([]string, 0, len(s.files))
	for name := range s.files {
		names = append(names, name)
	}
	slices.Sort(names)
	all := newObjects()
	holder := map[string]string{}
	for _, name := range names {
		f := s.files[name]
		for _, p := range f.problems {
			bad[p.Object] = append(bad[p.Object], p)
		}
		for _, key := range all.add(&f.objects) {
			bad[key] = append(bad[key], service.Problem{Object: key, Reason: service.ReasonConflict,
				Message: fmt.Sprintf("stands in file %s and again in %s, which is not used; keep one of them", holder[key], name)})
		}
		for _, key := range f.objects.keys() {
			if holder[key] == "" {
				holder[key] = name
			}
		}
	}
	return all
}

// tell puts the differences to what the queue knows into one batch.
func (s *Source) tell(q *source.Queue, all objects, bad map[string][]service.Problem) {
	var changes []func(*source.Update)
	for name, v := range all.services {
		if !reflect.DeepEqual(v, s.told.services[name]) {
			changes = append(changes, func(u *source.Update) { u.Services[name] = v })
		}
	}
	for name := range s.told.services {
		if all.services[name] == nil {
			changes = append(changes, func(u *source.Update) { u.Services[name] = nil })
		}
	}
	for name, v := range all.slices {
		if !reflect.DeepEqual(v, s.told.slices[name]) {
			changes = append(changes, func(u *source.Update) { u.Slices[name] = v })
		}
	}
	for name := range s.told.slices {
		if all.slices[name] == nil {
			changes = append(changes, func(u *source.Update) { u.Slices[name] = nil })
		}
	}
	if !reflect.DeepEqual(all.node, s.told.node) {
		node := service.Node{Name: s.cfg.NodeName}
		if all.node != nil {
			node = *all.node
		}
		changes = append(changes, func(u *source.Update) { u.Node = &node })
	}
	// Nothing is said of ServiceCIDRs where there never were any.
	knowsCIDRs := len(all.cidrs) > 0 || len(s.told.cidrs) > 0
	s.told = all
	if len(changes) > 0 {
		q.Batch(func(u *source.Update) {
			for _, change := range changes {
				change(u)
			}
		})
	}
	if knowsCIDRs {
		q.SetCIDRs(all.prefixes())
	}
	s.tellProblems(q, bad)
	q.SetSynced()
}

func (s *Source) tellProblems(q *source.Queue, bad map[string][]service.Problem) {
	for key, list := range bad {
		if !slices.Equal(s.toldBad[key], list) {
			q.SetProblems(key, list)
		}
	}
	for key := range s.toldBad {
		if bad[key] == nil {
			q.SetProblems(key, nil)
		}
	}
	s.toldBad = bad
}
