// SPDX-License-Identifier: Apache-2.0

// Package model says in plain Go what becomes of a packet at a node's outward
// devices: a second, slow and simple implementation of docs/wire.md, to hold the
// BPF programs against. Its tests feed random packets to both and compare
// verdicts and bytes.
//
// It imports the standard library only. Nothing here is shared with the
// programs or with what writes their tables: flows are entries of a Go map, and
// checksums are computed from nothing, never adjusted. Where the programs are
// free (which endpoint, which source port) the model is told what was chosen,
// says whether that was allowed, and holds later packets to it.
//
//	world.go   what the node knows: Services, endpoints, routes, devices
//	packet.go  from a frame to a tuple
//	model.go   what becomes of a packet; flows
//	decide.go  the first packet of a flow
//	send.go    rewriting and sending on
//	answer.go  resets, ICMP errors, echo replies made here
//	icmp.go    ICMP that comes in or goes out
//	tunnel.go  direct server return
package model
