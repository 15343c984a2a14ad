// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"

	"pgregory.net/rapid"
)

// mirrored is a port as somebody sees it who only follows changes.
type mirrored struct {
	Port
	backends []Backend
}

func follow(t *rapid.T, mirror map[PortID]*mirrored, change Change) {
	if change.Port == nil {
		delete(mirror, change.ID)
		return
	}
	m := mirror[change.ID]
	if m == nil || change.All {
		old := m
		m = &mirrored{backends: backends(change.Port)}
		mirror[change.ID] = m
		if old != nil {
			m.steady(t, old.backends)
		}
	}
	m.Port = *change.Port
	m.Cluster, m.Local = slices.Clone(m.Cluster), slices.Clone(m.Local)
	before := slices.Clone(m.backends)
	for _, pos := range change.Touched {
		for int(pos) >= len(m.backends) {
			m.backends = append(m.backends, Backend{})
		}
		m.backends[pos] = change.Port.Backend(pos)
	}
	m.steady(t, before)
}

// steady: who is still there is where it was.
func (m *mirrored) steady(t *rapid.T, before []Backend) {
	for pos, b := range before {
		for now, c := range m.backends {
			if b.Addr.IsValid() && b.Addr == c.Addr && pos != now {
				t.Fatalf("%v moved from %d to %d", b.Addr, pos, now)
			}
		}
	}
}

func (m *mirrored) same(t *rapid.T, p *Port) {
	if m == nil {
		t.Fatalf("%v was never announced", p.ID)
	}
	now := backends(p)
	for pos := range max(len(m.backends), len(now)) {
		var a, b Backend
		if pos < len(m.backends) {
			a = m.backends[pos]
		}
		if pos < len(now) {
			b = now[pos]
		}
		if a != b {
			t.Fatalf("%v position %d is %v; changes said %v", p.ID, pos, b, a)
		}
	}
	if !slices.Equal(m.Frontends, p.Frontends) || !slices.Equal(m.Cluster, p.Cluster) || !slices.Equal(m.Local, p.Local) || m.Refuse != p.Refuse ||
		m.MaglevSize != p.MaglevSize || m.Direct != p.Direct || !slices.Equal(m.weights, p.weights) {
		t.Fatalf("%v differs from what changes said", p.ID)
	}
}
