// SPDX-License-Identifier: Apache-2.0

package service

import "fmt"

// Algorithm is how the flows of a Service from outside the cluster are spread
// over its endpoints.
type Algorithm uint8

// The algorithms.
const (
	DefaultAlgorithm Algorithm = iota // the agent's --algorithm
	Random
	// Maglev: the tuple alone names the endpoint, the same on every node.
	Maglev
)

// ParseAlgorithm reads the word of a flag or an annotation.
func ParseAlgorithm(s string) (Algorithm, error) {
	switch s {
	case "random":
		return Random, nil
	case "maglev":
		return Maglev, nil
	}
	return DefaultAlgorithm, fmt.Errorf("%q is no algorithm: use random or maglev", s)
}

// Forwarding is how the traffic of a Service from outside gets to an endpoint
// on another node, and its answers back.
type Forwarding uint8

// The forwarding modes.
const (
	DefaultForwarding Forwarding = iota // the agent's --forwarding-mode
	// SNAT: with this node's address as source, so that answers come back here.
	SNAT
	// DSR, direct server return: in a tunnel, with the client's address; the
	// endpoint's node answers the client itself.
	DSR
	// Hybrid is DSR for TCP and SNAT for everything else.
	Hybrid
)

// ParseForwarding reads the word of a flag or an annotation.
func ParseForwarding(s string) (Forwarding, error) {
	switch s {
	case "snat":
		return SNAT, nil
	case "dsr":
		return DSR, nil
	case "hybrid":
		return Hybrid, nil
	}
	return DefaultForwarding, fmt.Errorf("%q is no forwarding mode: use snat, dsr or hybrid", s)
}

// Direct tells whether flows of a protocol are answered directly.
func (f Forwarding) Direct(p Protocol) bool { return f == DSR || f == Hybrid && p == TCP }

// MaxWeight is the largest weight of an endpoint.
const MaxWeight = 1000
