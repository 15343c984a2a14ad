// SPDX-License-Identifier: Apache-2.0

// Needs root, cgroup2 and Linux 6.1.

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/pkg/node"
	"portolan.dev/portolan/test/world"
)

// runAgent makes this executable the agent itself.
const runAgent = "PORTOLAN_TEST_RUN_AGENT"

func TestMain(m *testing.M) {
	world.Main()
	if os.Getenv(runAgent) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// stage is a node on which the agent runs as a process of its own, fed from a
// directory of manifests.
type stage struct {
	t         *testing.T
	world     *world.World
	node      *world.Node
	host      *world.Place
	manifests string
	agent     *world.Process
}

// newStage writes the manifests and starts the agent with flags.
func newStage(t *testing.T, manifests string, flags ...string) *stage {
	t.Helper()
	s := newStageWithout(t, manifests)
	s.start(flags...)
	return s
}

// newStageWithout is newStage without an agent.
func newStageWithout(t *testing.T, manifests string) *stage {
	t.Helper()
	w := world.NewT(t)
	s := &stage{t: t, world: w, node: world.Must(w.AddNode("here"))(t)}
	s.host = world.Must(s.node.Host("agent"))(t)
	s.manifests = filepath.Join(s.node.Dir(), "manifests")
	if err := os.Mkdir(s.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	s.write("all.yaml", manifests)
	return s
}

// start starts the agent on the node's manifests. Later flags override earlier
// ones.
func (s *stage) start(flags ...string) {
	s.t.Helper()
	s.startWith(append(append(s.node.AgentFlags(), "--manifests", s.manifests), flags...)...)
}

// startWith starts the agent with these flags and no others.
func (s *stage) startWith(flags ...string) {
	s.t.Helper()
	cmd := exec.Command("/proc/self/exe", flags...)
	cmd.Args[0] = "portolan-agent"
	cmd.Env = append(os.Environ(), runAgent+"=1")
	agent := world.Must(s.host.StartCmd(cmd))(s.t)
	s.t.Cleanup(func() {
		// The race detector speaks in the agent's log, not in ours.
		if out := agent.Output(); strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic: ") {
			s.t.Errorf("the agent says:\n%s", out)
		}
	})
	s.agent = agent
}

// write replaces a manifest in one step.
func (s *stage) write(name, text string) {
	s.t.Helper()
	scratch := filepath.Join(s.node.Dir(), name)
	if err := os.WriteFile(scratch, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(scratch, filepath.Join(s.manifests, name)); err != nil {
		s.t.Fatal(err)
	}
}

// answer is what a server of the agent says.
type answer struct {
	code   int
	body   string
	header http.Header
}

// get asks from within the node's namespace, at "address:port".
func (s *stage) get(addr, path string) (answer, error) {
	var a answer
	err := s.node.Do(func() error {
		// A dial to a literal address stays in this goroutine, which is the
		// one that is in the namespace.
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		request, err := http.NewRequest(http.MethodGet, "http://"+addr+path, nil)
		if err != nil {
			return err
		}
		request.Close = true
		if err := request.Write(conn); err != nil {
			return err
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), request)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		a = answer{r.StatusCode, string(body), r.Header}
		return err
	})
	return a, err
}

// wait calls f until it returns nil. It may have to await an agent that was
// started just now, for which the kernel checks every program.
func (s *stage) wait(f func() error) {
	s.t.Helper()
	if err := world.Wait(time.Minute, f); err != nil {
		s.t.Fatal(err)
	}
}

// eventually waits until the answer has a code, and returns it.
func (s *stage) eventually(addr, path string, code int) answer {
	s.t.Helper()
	var a answer
	s.wait(func() error {
		var err error
		if a, err = s.get(addr, path); err != nil {
			return err
		}
		if a.code != code {
			return fmt.Errorf("http://%s%s answers %d, want %d: %s", addr, path, a.code, code, a.body)
		}
		return nil
	})
	return a
}

// silent waits until nobody listens at an address. That nobody answers is not
// enough: a socket outlives the address that it is bound to.
func (s *stage) silent(addr string) {
	s.t.Helper()
	at := netip.MustParseAddrPort(addr)
	s.wait(func() error {
		var listeners []node.Listener
		err := s.node.Do(func() (err error) {
			listeners, err = node.Listeners(unix.IPPROTO_TCP)
			return err
		})
		if err != nil {
			return err
		}
		if slices.ContainsFunc(listeners, func(l node.Listener) bool { return l.Takes(at) }) {
			return fmt.Errorf("a socket still listens at %s", addr)
		}
		if _, err := s.get(addr, "/"); err == nil {
			return fmt.Errorf("%s still answers", addr)
		}
		return nil
	})
}
