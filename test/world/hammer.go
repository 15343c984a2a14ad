// SPDX-License-Identifier: Apache-2.0

package world

import (
	"time"

	"portolan.dev/portolan/test/world/internal/probe"
)

// HammerConfig says how hard to hammer.
type HammerConfig struct {
	// Workers dial at the same time, one if zero.
	Workers int
	// Count ends the hammer after so many dials in all; zero goes on until
	// Stop.
	Count int
	// Pause is what a worker waits between two dials.
	Pause time.Duration
	// Options apply to every dial.
	Options []Option
}

// Hammer dials one address again and again in the background of its probe.
type Hammer struct {
	probe  *Probe
	handle uint64
}

// Hammer starts dialling. Each dial opens a socket, asks the server's name
// and closes, as Dial does.
func (p *Probe) Hammer(proto, addr string, config HammerConfig) (*Hammer, error) {
	resp, err := p.ask(probe.Request{
		Op: probe.OpHammer, Proto: proto, Addr: addr, Options: options(config.Options),
		Workers: config.Workers, Count: config.Count, Pause: config.Pause,
	})
	if err != nil {
		return nil, err
	}
	return &Hammer{p, resp.Handle}, nil
}

// Report tells what has come back so far.
func (h *Hammer) Report() (Report, error) {
	resp, err := h.probe.ask(probe.Request{Op: probe.OpReport, Handle: h.handle})
	return resp.Report, err
}

// Stop ends the hammer, waits for the dials that are under way and tells what
// came back. A hammer with a Count is waited for instead.
func (h *Hammer) Stop() (Report, error) {
	resp, err := h.probe.ask(probe.Request{Op: probe.OpStop, Handle: h.handle})
	return resp.Report, err
}

// DialMany dials count times one after the other and tells what came back.
func (p *Probe) DialMany(proto, addr string, count int, opts ...Option) (Report, error) {
	h, err := p.Hammer(proto, addr, HammerConfig{Count: count, Options: opts})
	if err != nil {
		return Report{}, err
	}
	return h.Stop()
}
