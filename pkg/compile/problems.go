// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"portolan.dev/portolan/pkg/service"
)

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
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Message, b.Message))
	})
	return all, c.generation
}

// ProblemsGeneration is the number of Problems alone: cheap to compare.
func (c *Compiler) ProblemsGeneration() uint64 { return c.generation }
