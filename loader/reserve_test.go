// SPDX-License-Identifier: Apache-2.0

// Needs root.

package loader

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portolan.dev/portolan/test/world"
)

// reservations hands a test the means to write the kernel's list and to compare
// it, in a network namespace of the test's own.
func reservations(t *testing.T, test func(set, want func(string))) {
	t.Helper()
	node := world.Must(world.NewT(t).AddNode("here"))(t)
	err := node.Do(func() error {
		set := func(list string) {
			t.Helper()
			if err := os.WriteFile(reservedPorts, []byte(list+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want := func(list string) {
			t.Helper()
			if got := strings.TrimSpace(string(world.Must(os.ReadFile(reservedPorts))(t))); got != list {
				t.Errorf("reserved are %q, want %q", got, list)
			}
		}
		test(set, want)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func reserve(t *testing.T, socket string, first, last uint16) {
	t.Helper()
	if err := ReservePorts(socket, first, last); err != nil {
		t.Fatal(err)
	}
}

func restore(t *testing.T, socket string) {
	t.Helper()
	if told := world.Must(RestoreReservedPorts(socket, false))(t); len(told) != 1 {
		t.Errorf("restoring tells %q", told)
	}
}

// The kernel joins what lies side by side: what it lists is not what was
// written.
func TestReservedPortsAreGivenBackAsTheyWere(t *testing.T) {
	reservations(t, func(set, want func(string)) {
		for before, during := range map[string]string{
			"":                       "49152-65535",
			"8080":                   "8080,49152-65535",
			"8080,30000-30010":       "8080,30000-30010,49152-65535",
			"49000-49151":            "49000-65535",
			"40000-50000":            "40000-65535",
			"50000,60000-60010":      "49152-65535",
			"8080,49152-49160,65535": "8080,49152-65535",
		} {
			socket := filepath.Join(t.TempDir(), "run", "agent.sock")
			set(before)
			want(before)
			for range 2 { // an agent that adopts finds its own there
				reserve(t, socket, 49152, 65535)
				want(during)
			}
			if told := world.Must(RestoreReservedPorts(socket, true))(t); len(told) != 1 {
				t.Errorf("a dry run tells %q", told)
			}
			want(during)
			restore(t, socket)
			want(before)
			set("50000") // ours no more
			if told, err := RestoreReservedPorts(socket, false); told != nil || err != nil {
				t.Errorf("restoring again tells %q, %v", told, err)
			}
			want("50000")
		}
	})
}

func TestPortsThatAreReservedAlreadyAreLeftThere(t *testing.T) {
	reservations(t, func(set, want func(string)) {
		socket := filepath.Join(t.TempDir(), "agent.sock")
		set("40000-65535")
		reserve(t, socket, 49152, 65535)
		if told, err := RestoreReservedPorts(socket, false); told != nil || err != nil {
			t.Errorf("restoring what was not reserved tells %q, %v", told, err)
		}
		want("40000-65535")
	})
}

func TestReservationsOfOthersMeanwhileAreKept(t *testing.T) {
	reservations(t, func(set, want func(string)) {
		for during, after := range map[string]string{
			"8080,9090,49152-65535": "8080,9090",
			"49152-65535":           "",
			"8080,49100-65535":      "8080,49100-49151",
			"8080":                  "8080",
		} {
			socket := filepath.Join(t.TempDir(), "agent.sock")
			set("8080")
			reserve(t, socket, 49152, 65535)
			set(during)
			restore(t, socket)
			want(after)
		}
	})
}

// --masquerade-ports may be another at the next start.
func TestAllRangesThatWereReservedAreGivenBack(t *testing.T) {
	reservations(t, func(set, want func(string)) {
		socket := filepath.Join(t.TempDir(), "agent.sock")
		set("8080")
		reserve(t, socket, 50000, 51000)
		reserve(t, socket, 60000, 61000)
		want("8080,50000-51000,60000-61000")
		restore(t, socket)
		want("8080")
	})
}
