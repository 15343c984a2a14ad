// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"

	"portolan.dev/portolan/test/world/internal/probe"
)

// Server is a child process that answers every client with its name and the
// client's address.
type Server struct{ probe *Probe }

// AddressCalled as the name of a server of TCP or SCTP stands for the address
// that the client called.
const AddressCalled = probe.AddressCalled

// Serve starts a server. A listener is "proto:port" for every address of both
// families, or "proto:address:port"; proto is tcp, udp, sctp or http. All of
// them listen when Serve returns. HTTP answers have the name as body and the
// client in X-Client-Address; the others are the line "NAME CLIENT".
func (p *Place) Serve(name string, listeners ...string) (*Server, error) {
	pr, err := p.Probe()
	if err != nil {
		return nil, err
	}
	if _, err := pr.ask(probe.Request{Op: probe.OpServe, Name: name, Listen: listeners}); err != nil {
		pr.Close()
		return nil, fmt.Errorf("serve %s: %w", name, err)
	}
	return &Server{pr}, nil
}

// Process is the server's process.
func (s *Server) Process() *Process { return s.probe.Process }

// Close kills the server; clients see their connections reset.
func (s *Server) Close() { s.probe.Close() }
