// SPDX-License-Identifier: Apache-2.0

// Needs root; any kernel from 5.7 (processes are started inside a cgroup).
//
//	pod a ─┐                         ┌─ pod c
//	pod b ─┴ node1 ─── switch ─── node2
//	                     │
//	                   host
package world_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"

	"portolan.dev/portolan/test/world"
)

func TestMain(m *testing.M) {
	world.Main()
	if os.Getenv(crasher) != "" {
		fmt.Fprintln(os.Stderr, crash())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestPodsOnTwoNodesReachEachOther(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node1 := world.Must(w.AddNode("node1"))(t)
	node2 := world.Must(w.AddNode("node2"))(t)
	a := world.Must(node1.AddPod("a"))(t)
	b := world.Must(node1.AddPod("b"))(t)
	c := world.Must(node2.AddPod("c"))(t)
	for _, pod := range []*world.Pod{a, b, c} {
		world.Must(pod.Serve(pod.Name(), "tcp:8080", "udp:5353", "http:80"))(t)
	}
	client := world.Must(a.Probe())(t)
	for _, to := range []*world.Pod{a, b, c} {
		for _, target := range []struct{ proto, addr, seen string }{
			{"tcp", fmt.Sprintf("%s:8080", to.IPv4()), a.IPv4().String()},
			{"tcp", fmt.Sprintf("[%s]:8080", to.IPv6()), a.IPv6().String()},
			{"udp", fmt.Sprintf("%s:5353", to.IPv4()), a.IPv4().String()},
			{"udp", fmt.Sprintf("[%s]:5353", to.IPv6()), a.IPv6().String()},
			{"http", fmt.Sprintf("%s:80", to.IPv4()), a.IPv4().String()},
			{"http", fmt.Sprintf("[%s]:80", to.IPv6()), a.IPv6().String()},
		} {
			r := client.Dial(target.proto, target.addr)
			if !r.OK() || r.Backend != to.Name() || r.Seen.Addr().String() != target.seen {
				t.Errorf("%s %s: %v, want backend %s to see %s", target.proto, target.addr, r, to.Name(), target.seen)
			}
			if r.Peer.String() != target.addr || r.Local != r.Seen {
				t.Errorf("%s %s: %v, want that peer, and local and seen the same", target.proto, target.addr, r)
			}
		}
	}
}

func TestHostAndNodeProcessesReachNodesAndPods(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node1 := world.Must(w.AddNode("node1"))(t)
	node2 := world.Must(w.AddNode("node2"))(t)
	pod := world.Must(node2.AddPod("pod"))(t)
	world.Must(pod.Serve("pod", "tcp:80"))(t)
	world.Must(world.Must(node2.Host("daemon"))(t).Serve("daemon", "tcp:80", "udp:80"))(t)

	onNode := world.Must(world.Must(node1.Host("client"))(t).Probe())(t)
	outside := world.Must(world.Must(w.AddHost("outside"))(t).Probe())(t)
	for _, target := range []struct {
		name        string
		from        *world.Probe
		proto, addr string
		backend     string
	}{
		{"node to pod", onNode, "tcp", pod.IPv4().String() + ":80", "pod"},
		{"node to pod IPv6", onNode, "tcp", "[" + pod.IPv6().String() + "]:80", "pod"},
		{"node to node", onNode, "tcp", node2.IPv4().String() + ":80", "daemon"},
		{"host to node", outside, "udp", node2.IPv4().String() + ":80", "daemon"},
		{"host to node IPv6", outside, "udp", "[" + node2.IPv6().String() + "]:80", "daemon"},
	} {
		if r := target.from.Dial(target.proto, target.addr); r.Backend != target.backend {
			t.Errorf("%s: %v, want backend %s", target.name, r, target.backend)
		}
	}
	// A node answers on its second address from that address, so that a
	// connected client takes the answer.
	v4, _ := node2.PodCIDRs()
	second := v4.Addr().Next().String() + ":80"
	if r := onNode.Dial("udp", second); r.Backend != "daemon" {
		t.Errorf("connected udp to %s: %v, want backend daemon", second, r)
	}
}

func TestSingleStackPodsHaveOneFamily(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	four := world.Must(node.AddPod("four", world.PodConfig{Family: world.IPv4Only}))(t)
	six := world.Must(node.AddPod("six", world.PodConfig{Family: world.IPv6Only}))(t)
	dual := world.Must(node.AddPod("dual"))(t)
	world.Must(dual.Serve("dual", "tcp:80"))(t)
	v4, v6 := dual.IPv4().String()+":80", "["+dual.IPv6().String()+"]:80"

	for _, c := range []struct {
		pod      *world.Pod
		good     string
		bad      string
		has, not bool
	}{
		{four, v4, v6, four.IPv4().IsValid(), four.IPv6().IsValid()},
		{six, v6, v4, six.IPv6().IsValid(), six.IPv4().IsValid()},
	} {
		if !c.has || c.not {
			t.Errorf("pod %s has addresses %v and %v", c.pod.Name(), c.pod.IPv4(), c.pod.IPv6())
		}
		client := world.Must(c.pod.Probe())(t)
		if r := client.Dial("tcp", c.good); !r.OK() {
			t.Errorf("pod %s to %s: %v", c.pod.Name(), c.good, r)
		}
		if r := client.Dial("tcp", c.bad); r.Errno != syscall.ENETUNREACH {
			t.Errorf("pod %s to %s: %v, want ENETUNREACH", c.pod.Name(), c.bad, r)
		}
	}
}

func TestProcessesLiveInTheirCgroup(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	pod := world.Must(node.AddPod("pod"))(t)
	host := world.Must(node.Host("kubelet"))(t)
	root := world.Must(world.CgroupMount())(t)
	for _, place := range []*world.Place{pod.Place, host} {
		text := world.Must(world.Must(place.Probe())(t).Cgroup())(t)
		want := "0::/" + world.Must(filepath.Rel(root, place.Cgroup()))(t)
		if !strings.Contains(text+"\n", want+"\n") {
			t.Errorf("process of %s is in cgroups\n%swant line %s", place.Cgroup(), text, want)
		}
		if !strings.HasPrefix(place.Cgroup(), node.CgroupRoot()+"/") {
			t.Errorf("cgroup %s is not below the node's %s", place.Cgroup(), node.CgroupRoot())
		}
	}
}

func TestDoReturnsToTheCallersNamespace(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	before := world.Must(netns.Get())(t)
	defer before.Close()
	inside := netns.None()
	failure := errors.New("from inside")
	err := node.Do(func() (err error) {
		inside, err = netns.Get()
		return errors.Join(err, failure)
	})
	defer inside.Close()
	if !errors.Is(err, failure) {
		t.Errorf("Do returned %v, want the function's error", err)
	}
	path := world.Must(netns.GetFromPath(node.Path()))(t)
	defer path.Close()
	if !inside.Equal(path) {
		t.Errorf("Do ran in %v, want %v", inside, path)
	}
	after := world.Must(netns.Get())(t)
	defer after.Close()
	if !before.Equal(after) {
		t.Errorf("after Do in %v, want %v", after, before)
	}
}

func TestRemovedPodIsUnreachableAndItsNeighboursAreNot(t *testing.T) {
	t.Parallel()
	w := world.NewT(t)
	node := world.Must(w.AddNode("node"))(t)
	gone := world.Must(node.AddPod("gone"))(t)
	stays := world.Must(node.AddPod("stays"))(t)
	world.Must(gone.Serve("gone", "tcp:80"))(t)
	world.Must(stays.Serve("stays", "tcp:80"))(t)
	client := world.Must(world.Must(node.Host("client"))(t).Probe())(t)
	if r := client.Dial("tcp", gone.IPv4().String()+":80"); r.Backend != "gone" {
		t.Fatalf("before removal: %v, want backend gone", r)
	}
	if err := gone.Remove(); err != nil {
		t.Fatal(err)
	}
	if r := client.Dial("tcp", gone.IPv4().String()+":80", world.Timeout(shortly)); r.OK() {
		t.Errorf("after removal: %v, want an error", r)
	}
	if r := client.Dial("tcp", stays.IPv4().String()+":80"); r.Backend != "stays" {
		t.Errorf("neighbour: %v, want backend stays", r)
	}
	for _, path := range []string{gone.Path(), gone.Cgroup()} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}
