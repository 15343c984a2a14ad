// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"hash/maphash"

	"portolan.dev/portolan/pkg/service"
)

// Config is what a compiler needs to know.
type Config struct {
	// Node is this node: its name says which endpoints are local, its zone
	// which hints are meant for it.
	Node service.Node
	// MaxEndpoints is how many endpoints a service port may have; 0 means
	// DefaultMaxEndpoints.
	MaxEndpoints int
	// Algorithm and Forwarding hold for Services that ask for none; the default
	// is Random and SNAT. MaglevSize is one of MaglevSizes; 0 is the default.
	Algorithm  service.Algorithm
	Forwarding service.Forwarding
	MaglevSize uint32
}

// DefaultMaxEndpoints is far above what Kubernetes supports in one Service.
const DefaultMaxEndpoints = 1 << 16

// Update is a batch of changed objects: the latest state of each, nil for one
// that is gone.
type Update struct {
	Services map[service.Name]*service.Service
	Slices   map[service.Name]*service.EndpointSlice
	// Node is nil when nothing is new about it.
	Node *service.Node
}

// Compiler holds the compiled state. It is for one goroutine.
type Compiler struct {
	node     service.Node
	max      int
	outside  outside
	verdicts [modes][256]verdict

	services map[service.Name]*serviceState
	slices   map[service.Name]*sliceState
	claims   claims
	problems map[service.Name][]service.Problem
	// generation counts the changes of problems.
	generation uint64

	index   index
	pools   pools
	scratch scratch
	chunked bool
}

// serviceState is a Service, its slices and its compiled ports. It exists as
// soon as either the Service or a slice of it is known.
type serviceState struct {
	name   service.Name
	object *service.Service
	slices []*sliceState
	ports  []*portState

	// next is the object that this Apply brings; only while pending.
	next    *service.Service
	pending bool
	dirty   bool
	// complain: the problems are to be stated anew.
	complain bool
}

// New returns a compiler that knows no objects.
func New(cfg Config) *Compiler {
	if cfg.MaxEndpoints == 0 {
		cfg.MaxEndpoints = DefaultMaxEndpoints
	}
	if cfg.MaglevSize == 0 {
		cfg.MaglevSize = DefaultMaglevSize
	}
	return &Compiler{
		node: cfg.Node, max: cfg.MaxEndpoints, outside: outside{cfg.Algorithm, cfg.Forwarding, cfg.MaglevSize}, verdicts: verdictTables(),
		services: map[service.Name]*serviceState{},
		slices:   map[service.Name]*sliceState{},
		claims:   claims{owner: map[FrontendKey]*portState{}, rivals: map[FrontendKey][]*portState{}},
		problems: map[service.Name][]service.Problem{},
		// Not cryptography: a seed that nobody outside can know.
		index: index{seed: maphash.String(maphash.MakeSeed(), "")},
	}
}

// Apply takes a batch of changes and returns what they change of the service
// ports, in no particular order. The result, and the Ports it points to, are
// valid until the next Apply. What changes nothing returns nothing.
func (c *Compiler) Apply(u Update) []Change {
	c.chunked = len(u.Services)+len(u.Slices) >= bulk
	c.scratch.reset()
	if c.chunked && len(c.services) == 0 && len(c.slices) == 0 {
		c.makeRoom(len(u.Services), len(u.Slices))
	}
	moved := c.moveTo(u.Node)
	for name, obj := range u.Slices {
		c.stageSlice(name, obj)
	}
	for name, obj := range u.Services {
		s := c.serviceOf(name)
		s.next, s.pending = obj, true
		c.mark(s)
	}
	for _, s := range c.scratch.dirty {
		c.recompile(s, moved)
	}
	c.claims.settle(func(p *portState) {
		p.reassign, p.contested = true, true
		c.changed(p)
	})
	for _, p := range c.scratch.ports {
		c.emit(p)
	}
	for _, p := range c.scratch.ports {
		c.state(p.service)
	}
	for _, s := range c.scratch.dirty {
		c.finish(s)
	}
	return c.scratch.changes
}

// makeRoom sizes the maps of an empty compiler for a first load, which would
// otherwise grow them step by step.
func (c *Compiler) makeRoom(services, slices int) {
	c.services = make(map[service.Name]*serviceState, services)
	c.slices = make(map[service.Name]*sliceState, slices)
	c.claims.owner = make(map[FrontendKey]*portState, services)
	c.scratch.dirty = make([]*serviceState, 0, services)
	c.scratch.ports = make([]*portState, 0, services)
	c.scratch.changes = make([]Change, 0, services)
}

// moveTo takes over facts about this node; true when they concern endpoints,
// and every Service was marked therefore.
func (c *Compiler) moveTo(node *service.Node) bool {
	if node == nil || node.Name == c.node.Name && node.Zone == c.node.Zone {
		return false
	}
	c.node = *node
	for _, s := range c.services {
		c.mark(s)
	}
	return true
}

func (c *Compiler) mark(s *serviceState) {
	if !s.dirty {
		s.dirty = true
		c.scratch.dirty = append(c.scratch.dirty, s)
	}
}

func (c *Compiler) serviceOf(name service.Name) *serviceState {
	s := c.services[name]
	if s == nil {
		s = &c.pools.services.take(1, c.chunked)[0]
		s.name = name
		c.services[name] = s
	}
	return s
}

// stageSlice notes what becomes of a slice. One that turns to another Service,
// family or weight, or headless, is another slice, whatever its name.
func (c *Compiler) stageSlice(name service.Name, obj *service.EndpointSlice) {
	sl := c.slices[name]
	if sl != nil && (obj == nil || sl.service.name != obj.ServiceName() || sl.object.Family != obj.Family || sl.object.Headless != obj.Headless || sl.object.Weight != obj.Weight) {
		sl.next, sl.pending = nil, true
		c.mark(sl.service)
		delete(c.slices, name)
		sl = nil
	}
	if obj == nil {
		return
	}
	if sl == nil {
		sl = &c.pools.slices.take(1, c.chunked)[0]
		sl.service = c.serviceOf(obj.ServiceName())
		if sl.service.slices == nil {
			sl.service.slices = c.pools.sliceRefs.take(1, c.chunked)[:0]
		}
		sl.service.slices = append(sl.service.slices, sl)
		c.slices[name] = sl
	}
	sl.next, sl.pending = obj, true
	c.mark(sl.service)
}

// recompile brings the service ports of one Service up to date. Who gets
// contested frontends is settled later, when all claims are in.
func (c *Compiler) recompile(s *serviceState, moved bool) {
	var edits edit
	for _, sl := range s.slices {
		if sl.pending {
			edits |= c.advance(sl)
		} else if moved && c.restate(sl) {
			sl.edit = restated
			edits |= restated
		}
	}
	if s.pending {
		c.reshape(s)
	}
	for _, p := range s.ports {
		if p.elsewhere() {
			continue
		}
		if edits != 0 || p.fresh {
			c.follow(p)
			p.touched = c.weigh(p)
			p.all = c.balance(p) || p.all
			p.all = c.locate(p) || p.all
		}
		if p.fresh || p.all || p.reassign || len(p.touched) > 0 {
			c.changed(p)
		}
	}
}

// changed has a Change of the service port made, once.
func (c *Compiler) changed(p *portState) {
	if !p.listed {
		p.listed = true
		c.scratch.ports = append(c.scratch.ports, p)
	}
}

func (c *Compiler) emit(p *portState) {
	p.listed = false
	if p.gone {
		c.scratch.changes = append(c.scratch.changes, Change{ID: p.ID})
		return
	}
	if p.reassign {
		c.assign(p)
	}
	switch {
	case p.fresh || p.all:
		c.scratch.changes = append(c.scratch.changes, Change{ID: p.ID, Port: &p.Port, All: true})
	case len(p.touched) > 0:
		c.scratch.changes = append(c.scratch.changes, Change{ID: p.ID, Port: &p.Port, Touched: p.touched})
	}
	p.fresh, p.all, p.touched = false, false, nil
}

// finish forgets what is gone and what only this Apply needed.
func (c *Compiler) finish(s *serviceState) {
	s.dirty = false
	kept := s.slices[:0]
	for _, sl := range s.slices {
		if sl.edit != left {
			sl.edit, sl.origins = 0, nil
			kept = append(kept, sl)
		}
	}
	clear(s.slices[len(kept):])
	s.slices = kept
	c.state(s)
	if s.object == nil && len(s.slices) == 0 {
		delete(c.services, s.name)
	}
}
