// SPDX-License-Identifier: Apache-2.0

// Needs root.

package loader

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"portolan.dev/portolan/test/world"
)

// What others have reserved stays so, however the kernel writes the list.
func TestOnlyPortsThatTheAgentReservedAreGivenBack(t *testing.T) {
	w := world.NewT(t)
	node := world.Must(w.AddNode("here"))(t)
	type ranges [][2]uint16
	for name, c := range map[string]struct {
		before  string
		reserve ranges // by one agent after the other
		between string
		changed []string // what cleanup says
		after   string
	}{
		"nothing else":              {"", ranges{{49152, 65535}}, "49152-65535", []string{"49152-65535"}, ""},
		"some ports within":         {"50000-50100", ranges{{49152, 65535}}, "49152-65535", []string{"49152-49999,50101-65535"}, "50000-50100"},
		"neighbours":                {"80,40000-49151", ranges{{49152, 65535}}, "80,40000-65535", []string{"49152-65535"}, "80,40000-49151"},
		"one that overlaps":         {"40000-50000", ranges{{49152, 65535}}, "40000-65535", []string{"50001-65535"}, "40000-50000"},
		"all of them":               {"40000-65535", ranges{{49152, 65535}}, "40000-65535", nil, "40000-65535"},
		"an agent that starts anew": {"80", ranges{{49152, 65535}, {49152, 65535}}, "80,49152-65535", []string{"49152-65535"}, "80"},
		"another range":             {"50000", ranges{{49152, 60000}, {59000, 65535}}, "49152-65535", []string{"49152-49999,50001-65535"}, "50000"},
	} {
		socket := filepath.Join(t.TempDir(), "agent.sock")
		is := func(what, want string) {
			t.Helper()
			if got := strings.TrimSpace(string(world.Must(os.ReadFile(reservedPorts))(t))); got != want {
				t.Errorf("%s: %s %q is reserved, want %q", name, what, got, want)
			}
		}
		err := node.Do(func() error {
			if err := os.WriteFile(reservedPorts, []byte(c.before+"\n"), 0o644); err != nil {
				return err
			}
			for _, r := range c.reserve {
				if err := ReservePorts(socket, r[0], r[1]); err != nil {
					return err
				}
			}
			is("with the agent", c.between)
			for _, dryRun := range []bool{true, false} {
				got, err := RestoreReservedPorts(socket, dryRun)
				if err != nil {
					return err
				}
				var want []string
				for _, ports := range c.changed {
					want = append(want, "ports "+ports+" from net.ipv4.ip_local_reserved_ports")
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s: cleanup says %q, want %q", name, got, want)
				}
			}
			is("afterwards", c.after)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(reservedPortsFile(socket)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the note is left: %v", name, err)
		}
	}
}

// Somebody may have taken the ports out of the list, or the list may be that of
// another network namespace.
func TestPortsThatAreNotReservedAnyMoreAreNotSaidToBe(t *testing.T) {
	w := world.NewT(t)
	node := world.Must(w.AddNode("here"))(t)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	err := node.Do(func() error {
		if err := ReservePorts(socket, 49152, 65535); err != nil {
			return err
		}
		if err := os.WriteFile(reservedPorts, []byte("80\n"), 0o644); err != nil {
			return err
		}
		got, err := RestoreReservedPorts(socket, false)
		if len(got) > 0 {
			t.Errorf("cleanup says %q", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

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
			if err := ReservePorts(socket, 49152, 65535); err != nil {
				t.Fatal(err)
			}
			set(during)
			if _, err := RestoreReservedPorts(socket, false); err != nil {
				t.Error(err)
			}
			want(after)
		}
	})
}
