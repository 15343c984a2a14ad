// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"

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

// conflict is a frontend that a service port wants and another one has.
type conflict struct {
	frontend Frontend
	holder   PortID
}

// holderOf names who has the frontend, for a problem of Service loser.
func (l *conflict) holderOf(loser service.Name) string {
	if l.holder.Service == loser {
		return fmt.Sprintf("port %q of the same Service", l.holder.Port)
	}
	return fmt.Sprintf("Service %s, the older or of the same age the first by name,", l.holder.Service)
}

// New returns a compiler that knows no objects.
func New(cfg Config) *Compiler {
	if cfg.MaxEndpoints == 0 {
		cfg.MaxEndpoints = DefaultMaxEndpoints
	}
	return &Compiler{
		node: cfg.Node, max: cfg.MaxEndpoints, verdicts: verdictTables(),
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

// stageSlice notes what becomes of a slice. One that turns to another Service
// or family, or headless, is another slice, whatever its name.
func (c *Compiler) stageSlice(name service.Name, obj *service.EndpointSlice) {
	sl := c.slices[name]
	if sl != nil && (obj == nil || sl.service.name != obj.ServiceName() || sl.object.Family != obj.Family || sl.object.Headless != obj.Headless) {
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

// reshape matches the service ports with the Service's new object.
func (c *Compiler) reshape(s *serviceState) {
	old := s.object
	s.object, s.next, s.pending = s.next, nil, false
	s.complain = s.complain || len(c.problems[s.name]) > 0
	for _, p := range s.ports {
		p.kept = false
		if old != nil && s.object != nil && !old.Created.Equal(s.object.Created) {
			c.claims.disturb(p)
		}
	}
	before := s.ports
	s.ports = c.pools.portRefs.take(c.portCount(s.object), c.chunked)[:0]
	if s.object != nil {
		for _, family := range []service.Family{service.IPv4, service.IPv6} {
			c.reshapeFamily(s, before, family)
		}
	}
	for _, p := range before {
		if !p.kept {
			c.release(p)
		}
	}
}

func (c *Compiler) portCount(obj *service.Service) int {
	if obj == nil {
		return 0
	}
	return max(1, len(obj.Ports)) * len(obj.ClusterIPs)
}

func (c *Compiler) reshapeFamily(s *serviceState, before []*portState, family service.Family) {
	obj := s.object
	if !hasFamily(obj, family) || !proxied(obj) {
		return
	}
	if obj.ProxyName != "" {
		c.reshapeElsewhere(s, before, family)
		return
	}
	sources := sourcesOf(obj, family)
	for i := range obj.Ports {
		sp := &obj.Ports[i]
		id := PortID{Service: s.name, Port: sp.Name, Protocol: sp.Protocol, Family: family}
		p := c.portOf(s, before, id)
		if p == nil {
			continue // a port that the object names twice
		}
		if p.Affinity != obj.Affinity || !slices.Equal(p.SourceRanges, sources) {
			p.Affinity, p.SourceRanges = obj.Affinity, sources
			p.all = true
		}
		wanted := frontendsOf(c.scratch.frontends[:0], obj, sp, family, sources != nil)
		c.scratch.frontends = wanted
		c.want(p, wanted)
	}
}

// portOf returns the service port of that id, an old one or a new one; nil
// when this object had it already.
func (c *Compiler) portOf(s *serviceState, before []*portState, id PortID) *portState {
	for _, p := range s.ports {
		if p.ID == id {
			return nil
		}
	}
	for _, p := range before {
		if p.ID == id {
			p.kept = true
			s.ports = append(s.ports, p)
			return p
		}
	}
	p := &c.pools.ports.take(1, c.chunked)[0]
	p.ID, p.service, p.fresh, p.reassign, p.kept = id, s, true, true, true
	s.ports = append(s.ports, p)
	return p
}

// want claims the frontends that are new and gives up those that are not
// wanted any more.
func (c *Compiler) want(p *portState, wanted []Frontend) {
	if slices.Equal(p.wanted, wanted) {
		return
	}
	for i := range p.wanted {
		if !hasKey(wanted, p.wanted[i].FrontendKey) {
			c.claims.remove(p.wanted[i].FrontendKey, p)
		}
	}
	for i := range wanted {
		if !hasKey(p.wanted, wanted[i].FrontendKey) {
			c.claims.add(wanted[i].FrontendKey, p)
		}
	}
	p.wanted = c.pools.frontends.copyOf(wanted, c.chunked)
	p.reassign = true
}

func hasKey(list []Frontend, key FrontendKey) bool {
	for i := range list {
		if list[i].FrontendKey == key {
			return true
		}
	}
	return false
}

// reshapeElsewhere makes the pseudo port of a Service that another proxy
// serves: its cluster IPs, which are to be let pass.
func (c *Compiler) reshapeElsewhere(s *serviceState, before []*portState, family service.Family) {
	p := c.portOf(s, before, PortID{Service: s.name, Family: family})
	var pass []Frontend
	for _, addr := range s.object.ClusterIPs {
		if service.FamilyOf(addr) == family {
			pass = append(pass, Frontend{FrontendKey: FrontendKey{Addr: netip.AddrPortFrom(addr, 0)}, Kind: Elsewhere})
		}
	}
	p.reassign = false
	if p.fresh || !slices.Equal(p.Frontends, pass) {
		p.Frontends, p.all = pass, true
		c.changed(p)
	}
}

func (p *portState) elsewhere() bool { return p.ID.Protocol == 0 }

// release takes a service port out of force.
func (c *Compiler) release(p *portState) {
	for i := range p.wanted {
		c.claims.remove(p.wanted[i].FrontendKey, p)
	}
	p.gone = true
	if len(p.conflicts) > 0 || p.excess > 0 {
		p.service.complain = true
	}
	c.changed(p)
}

// state puts the problems of a Service into words, if they may have changed.
func (c *Compiler) state(s *serviceState) {
	if !s.complain {
		return
	}
	s.complain = false
	var found []service.Problem
	object := "Service " + s.name.String()
	for _, p := range s.ports {
		for _, l := range p.conflicts {
			found = append(found, service.Problem{Object: object, Reason: service.ReasonConflict,
				Message: fmt.Sprintf("%s %s/%s of port %q is not served: %s has it; give one of them another address or port",
					l.frontend.Kind, l.frontend.Addr, p.ID.Protocol, p.ID.Port, l.holderOf(s.name))})
		}
		if p.excess > 0 {
			found = append(found, service.Problem{Object: object, Reason: service.ReasonTooMany,
				Message: fmt.Sprintf("port %q has %d endpoints (%s), of which %d are used; split the Service",
					p.ID.Port, p.excess, p.ID.Family, c.max)})
		}
	}
	c.generation++
	if len(found) == 0 {
		delete(c.problems, s.name)
		return
	}
	c.problems[s.name] = found
}

// Problems returns what is wrong across objects, sorted, and a number that
// changes whenever the answer does.
func (c *Compiler) Problems() ([]service.Problem, uint64) {
	var all []service.Problem
	for _, found := range c.problems {
		all = append(all, found...)
	}
	slices.SortFunc(all, func(a, b service.Problem) int {
		if a.Object != b.Object {
			if a.Object < b.Object {
				return -1
			}
			return 1
		}
		if a.Message < b.Message {
			return -1
		}
		return 1
	})
	return all, c.generation
}

// ProblemsGeneration is the number of Problems alone: cheap to compare.
func (c *Compiler) ProblemsGeneration() uint64 { return c.generation }

// Port returns a service port, or nil when there is none.
func (c *Compiler) Port(id PortID) *Port {
	s := c.services[id.Service]
	if s == nil {
		return nil
	}
	for _, p := range s.ports {
		if p.ID == id {
			return &p.Port
		}
	}
	return nil
}

// Ports yields every service port, in no particular order.
func (c *Compiler) Ports() iter.Seq[*Port] {
	return func(yield func(*Port) bool) {
		for _, s := range c.services {
			for _, p := range s.ports {
				if !yield(&p.Port) {
					return
				}
			}
		}
	}
}

// Services yields every Service, headless and ExternalName ones too.
func (c *Compiler) Services() iter.Seq[*service.Service] {
	return func(yield func(*service.Service) bool) {
		for _, s := range c.services {
			if s.object != nil && !yield(s.object) {
				return
			}
		}
	}
}

func (s *scratch) reset() {
	clear(s.dirty)
	clear(s.ports)
	s.dirty, s.ports = s.dirty[:0], s.ports[:0]
	s.changes, s.touched = s.changes[:0], s.touched[:0]
	s.origins = s.origins[:0]
}
