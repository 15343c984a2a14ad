// SPDX-License-Identifier: Apache-2.0

package world

import "os"

// TB is what the package needs of a testing.TB.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
	Failed() bool
}

// RequireRoot skips the test unless it runs as root.
func RequireRoot(tb TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skipf("needs root for namespaces, cgroups and bpf")
	}
}

// NewT makes a world that is closed at the end of the test. When the test has
// failed, the output of every process still in the world is logged first.
func NewT(tb TB) *World {
	tb.Helper()
	RequireRoot(tb)
	w, err := New()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		tb.Helper()
		if tb.Failed() {
			w.logOutput(tb)
		}
		if err := w.Close(); err != nil {
			tb.Fatalf("%v", err)
		}
	})
	return w
}

func (w *World) logOutput(tb TB) {
	tb.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.processes {
		if out := p.Output(); out != "" {
			tb.Logf("output of %s (pid %d):\n%s", p.label, p.PID(), out)
		}
	}
}

// Must turns a pair of value and error into the value, failing the test for an
// error. It takes the test last so that a call's results can be passed on:
//
//	client := world.Must(node.AddPod("client"))(t)
func Must[V any](v V, err error) func(TB) V {
	return func(tb TB) V {
		tb.Helper()
		if err != nil {
			tb.Fatalf("%v", err)
		}
		return v
	}
}

// Eventually calls f every few milliseconds until it returns nil. It fails the
// test with f's last error after ten seconds, times PORTOLAN_TIME_SCALE.
func Eventually(tb TB, f func() error) {
	tb.Helper()
	if err := Wait(patience, f); err != nil {
		tb.Fatalf("%v", err)
	}
}
