// SPDX-License-Identifier: Apache-2.0

// Package reconcile makes the BPF tables say what the compiler says. It owns
// the ids of frontends, backends and service ports and the ranges of slots,
// adopts what an earlier agent left, and keeps what is freed in quarantine
// until no running program can still hold it.
//
// It imports pkg/compile and pkg/service for the model and maps for the tables.
// The invariants it guards:
//
//   - A set of backends is published by one atomic store, after everything it
//     leads to was written to memory that no program could reach.
//   - Whatever was reachable is used again only after a grace period, and ids
//     with another generation.
//   - Order: backends, slots, state word, frontend entry; removal in reverse.
//   - An endpoint change makes no system call.
package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/compile"
	"portolan.dev/portolan/pkg/service"
)

// Config is what a reconciler works with.
type Config struct {
	// Attach makes the programs use a set of tables, and pins both. It is
	// called with the lock held: after the first Apply, and after growth.
	Attach func(*maps.Set) error
	// Adopted is what an earlier agent left, or nil.
	Adopted *maps.Set
	// Wait blocks for a grace period of running programs.
	Wait func() error
	// Node is what is known of this node at the first Apply.
	Node Node
	// ExternalClusterIP lets traffic from outside the cluster use ClusterIPs.
	ExternalClusterIP bool
}

// Reconciler writes tables. Apply and ApplyNode are for one goroutine at a
// time; Recycle may run beside them, and Stats too.
type Reconciler struct {
	cfg Config

	mu        sync.Mutex
	draft     *maps.Draft // becomes the first set
	set       *maps.Set
	live      bool       // programs may be reading the tables
	attached  bool       // they are this agent's
	cover     maps.Cover // that the programs were loaded with
	found     *found     // what is left to adopt; nil once that is over
	ports     map[compile.PortID]*port
	frontends map[compile.FrontendKey]*frontend
	addresses map[netip.Addr]*addressUse
	filter    map[uint32]uint32  // bit of vip_filter -> addresses that set it
	nodePorts map[uint16]int     // NodePort -> frontends
	ends      map[netip.Addr]int // endpoint addresses of this node -> service ports that tunnels lead to
	entries   [2]uint32          // in frontends4 and frontends6, owner entries too
	node      Node

	portIDs, frontendIDs, backends4, backends6 ids
	slots                                      spans

	inserting sync.WaitGroup // system calls on set that a transaction makes beside itself

	maglev compile.Maglev
	slabs  slabs // of the Apply that runs, if it is a first load

	retired []retiree
	failed  map[compile.PortID]freed // not written as they should be
	torn    bool                     // the latest commit did not insert, or delete, all that it should have
	wake    chan struct{}
	resized map[string]uint64
	cramped map[string]bool // tables that made a change wait: to be grown
}

// port is a service port as the tables hold it.
type port struct {
	id       uint32
	compiled compile.PortID
	kind     service.Type // as its name says
	named    bool         // its name is in the table, or about to be

	// words are the slot words of the backends by position, as in compile.Port;
	// 0 is a hole. All else about a backend is looked up in the table.
	words []uint64

	cluster span
	local   span // in a block of its own unless shared
	shared  bool // local is the beginning of cluster

	maglev    bool // its sets are Maglev tables
	direct    bool // endpoints elsewhere answer clients directly
	refuse    bool
	affinity  time.Duration
	sources   []netip.Prefix        // in sources4/6, without those about to be deleted
	ends      map[netip.Addr]uint32 // in tunnel_ends likewise: endpoints of this node -> backend ids
	declared  []compile.Frontend
	frontends []*frontend
}

// frontend is an entry of frontends4/6 and its state.
type frontend struct {
	key        compile.FrontendKey
	id         uint32
	port       *port // nil: to be removed
	words      [2]uint64
	owner      uint64 // service port and affinity timeout, as stored
	registered bool   // in frontends4 or frontends6, or about to be
}

// New returns a reconciler. With cfg.Adopted it reads the tables, else it makes
// those that do not depend on Services, so that the first Apply need not.
// Nothing is written before.
func New(cfg Config) (*Reconciler, error) {
	r := &Reconciler{
		cfg: cfg, node: cfg.Node, set: cfg.Adopted, live: cfg.Adopted != nil,
		ports:     map[compile.PortID]*port{},
		frontends: map[compile.FrontendKey]*frontend{},
		addresses: map[netip.Addr]*addressUse{},
		filter:    map[uint32]uint32{},
		nodePorts: map[uint16]int{},
		ends:      map[netip.Addr]int{},
		failed:    map[compile.PortID]freed{},
		wake:      make(chan struct{}, 1),
		resized:   map[string]uint64{},
		cramped:   map[string]bool{},
	}
	r.portIDs.next = 1 // 0 stands for no service port in empty entries
	if r.set == nil {
		var err error
		if r.draft, err = maps.NewDraft(); err != nil {
			return nil, err
		}
		return r, nil
	}
	r.setLimits()
	found, err := r.readTables()
	if err != nil {
		return nil, fmt.Errorf("adopt tables: %w", err)
	}
	r.found = found
	return r, nil
}

// Apply makes the tables say what the changes say. The first call must carry
// every service port there is: it sizes or adopts the tables, removes what was
// found in them and is no longer wanted, and attaches the programs. So must the
// next one if it could not make them.
//
// An error names the service ports that could not be written; the rest is in
// force. Failed returns them, to be applied again. After an error without any,
// as after any other, Apply is to be called again, be it without changes.
func (r *Reconciler) Apply(changes []compile.Change) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := transaction{r: r}
	if len(r.ports) == 0 {
		need := measure(changes)
		if r.set == nil {
			if err := r.create(&need); err != nil {
				for i := range changes {
					r.failed[changes[i].ID] = freed{}
				}
				return err
			}
		}
		t.makeRoom(&need)
		defer func() { r.slabs = slabs{} }()
	}
	var errs []error
	if r.found != nil {
		// Programs are running: no address of the node may pass for a Service's.
		errs = append(errs, r.applyAddresses(&r.node))
	}
	for i := range changes {
		c := &changes[i]
		t.insertEarly()
		if err := t.stage(c); err != nil {
			errs = append(errs, fmt.Errorf("write service port %s: %w", describe(c.ID), err))
		}
	}
	errs = append(errs, t.commit())
	if r.found != nil {
		errs = append(errs, r.applyNode(r.node), r.finishAdoption())
	}
	if !r.attached {
		errs = append(errs, r.attach())
	}
	errs = append(errs, r.growIfNeeded())
	return errors.Join(errs...)
}

func (r *Reconciler) attach() error {
	if err := r.applyNode(r.node); err != nil {
		return err
	}
	if err := r.loadPrograms(r.set); err != nil {
		return err
	}
	r.attached, r.live = true, true
	return nil
}

// Attached tells whether the programs that run are this agent's.
func (r *Reconciler) Attached() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attached
}

// Failed returns the service ports whose last change could not be written.
func (r *Reconciler) Failed() []compile.PortID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []compile.PortID
	for id := range r.failed {
		out = append(out, id)
	}
	return out
}

// Tables returns the set in use, or nil before the first Apply. It is valid
// until the next Apply, which may replace it.
func (r *Reconciler) Tables() *maps.Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set
}

func describe(id compile.PortID) string {
	return fmt.Sprintf("%s port %q %s %s", id.Service, id.Port, id.Protocol, id.Family)
}
