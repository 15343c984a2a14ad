// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"iter"

	"portolan.dev/portolan/pkg/service"
)

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
