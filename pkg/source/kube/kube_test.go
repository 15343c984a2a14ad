// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// follower is a source at work, and all that it told so far.
type follower struct {
	t        *testing.T
	server   *fakeServer
	queue    *source.Queue
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.EndpointSlice
	problems map[string][]service.Problem
	cidrs    []netip.Prefix
	known    bool
	node     *service.Node
	synced   bool
	told     int // changes of Services, nil ones included
	updates  chan source.Update
}

func follow(t *testing.T, server *fakeServer) *follower {
	t.Helper()
	src, err := New(Config{Kubeconfig: server.kubeconfig(), NodeName: "here", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, server: server, queue: source.NewQueue(), updates: make(chan source.Update),
		services: map[service.Name]*service.Service{}, slices: map[service.Name]*service.EndpointSlice{}, problems: map[string][]service.Problem{}}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- src.Run(ctx, f.queue) }()
	go func() {
		defer close(f.updates)
		for {
			u, err := f.queue.Take(ctx)
			if err != nil {
				return
			}
			select {
			case f.updates <- u:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		server.stop(true)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f
}

// until takes updates until what was told is as it should be.
func (f *follower) until(what string, done func() bool) {
	f.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for !done() {
		select {
		case u := <-f.updates:
			f.take(u)
		case <-tick.C:
		case <-deadline.C:
			f.t.Fatalf("%s: not within 20 s; told: %v, %v, problems %v, status %+v", what, f.services, f.slices, f.problems, f.queue.Status())
		}
	}
}

func (f *follower) take(u source.Update) {
	for name, s := range u.Services {
		f.told++
		if f.services[name] = s; s == nil {
			delete(f.services, name)
		}
	}
	for name, s := range u.Slices {
		if f.slices[name] = s; s == nil {
			delete(f.slices, name)
		}
	}
	for object, list := range u.Problems {
		f.problems[object] = list
	}
	if u.Node != nil {
		f.node = u.Node
	}
	f.cidrs, f.known, f.synced = u.ServiceCIDRs, u.CIDRsKnown, u.Synced
}

func serviceObject(name, ip string) object {
	return object{"metadata": object{"namespace": "default", "name": name, "managedFields": []object{{"manager": "test"}}},
		"spec": object{"type": "ClusterIP", "clusterIP": ip, "clusterIPs": []string{ip}, "ports": []object{{"port": 80, "protocol": "TCP"}}}}
}

func sliceObject(name, owner, ip string, labels object) object {
	all := object{"kubernetes.io/service-name": owner}
	for k, v := range labels {
		all[k] = v
	}
	return object{"metadata": object{"namespace": "default", "name": name, "labels": all}, "addressType": "IPv4",
		"ports": []object{{"name": "", "port": 8080, "protocol": "TCP"}}, "endpoints": []object{{"addresses": []string{ip}}}}
}

var (
	webName   = service.Name{Namespace: "default", Name: "web"}
	dbName    = service.Name{Namespace: "default", Name: "db"}
	sliceName = service.Name{Namespace: "default", Name: "web-1"}
)

func TestNothingIsSyncedBeforeAllKindsWereListed(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.set("services", "web", serviceObject("web", "10.96.0.1"))
	s.set("endpointslices", "web-1", sliceObject("web-1", "web", "10.0.0.1", nil))
	s.set("nodes", "here", object{"metadata": object{"name": "here", "labels": object{"topology.kubernetes.io/zone": "z"}}})
	s.absent["nodes"] = true // as while the agent may not read them
	f := follow(t, s)
	f.until("the Service and its slice", func() bool { return f.services[webName] != nil && f.slices[sliceName] != nil })
	if f.synced {
		t.Error("synced, although Nodes were not listed")
	}
	s.change(func() { s.absent["nodes"] = false })
	f.until("synced", func() bool { return f.synced })
	if f.node == nil || f.node.Zone != "z" {
		t.Errorf("node %+v when synced", f.node)
	}
}

func TestChangesAndDeletionsArrive(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced })
	s.set("services", "web", serviceObject("web", "10.96.0.1"))
	f.until("a Service comes", func() bool { return f.services[webName] != nil })
	s.set("services", "web", serviceObject("web", "10.96.0.2"))
	f.until("it changes", func() bool {
		w := f.services[webName]
		return w != nil && w.ClusterIPs[0] == netip.MustParseAddr("10.96.0.2")
	})
	s.set("services", "web", nil)
	f.until("it goes", func() bool { return f.services[webName] == nil })
	s.set("servicecidrs", "kubernetes", object{"metadata": object{"name": "kubernetes"}, "spec": object{"cidrs": []string{"10.96.0.0/12", "fd00::/108"}}})
	f.until("a ServiceCIDR comes", func() bool { return f.known && len(f.cidrs) == 2 })
}

// Health and zones are judged by what was last known of the Node.
func TestANodeThatIsGoneOrUnreadableKeepsItsLastState(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.set("nodes", "here", object{"metadata": object{"name": "here", "labels": object{"topology.kubernetes.io/zone": "z"}}})
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced && f.node != nil })
	s.set("nodes", "here", nil)
	f.until("that the Node is gone", func() bool {
		return slices.ContainsFunc(f.queue.Status(), func(st source.ResourceStatus) bool { return st.Resource == "nodes" && st.Objects == 0 })
	})
	s.absent["nodes"] = true
	s.expire()
	s.stop(true)
	f.untilStatus("nodes", false)
	// What was told of the Node stands before this in the queue.
	f.queue.SetService(dbName, nil)
	told := f.told
	f.until("a change after that", func() bool { return f.told > told })
	if f.node == nil || f.node.Zone != "z" {
		t.Errorf("node %+v when it is gone, want it as it was", f.node)
	}
}

func TestANodeThatThereIsNotIsNamedUntilItComes(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced })
	missing := func() bool { return len(f.problems["this node"]) == 1 }
	if !missing() {
		t.Errorf("synced without a Node, and problems are %v", f.problems)
	}
	here := object{"metadata": object{"name": "here"}}
	s.set("nodes", "here", here)
	f.until("it comes", func() bool { return f.node != nil && !missing() })
	s.set("nodes", "here", nil)
	f.until("it goes", missing)
	s.set("nodes", "here", here)
	f.until("it comes again", func() bool { return !missing() })
}

func TestAnAPIServerThatIsAwayChangesNothing(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.set("services", "web", serviceObject("web", "10.96.0.1"))
	s.set("services", "db", serviceObject("db", "10.96.0.2"))
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced && len(f.services) == 2 })
	s.stop(true)
	f.untilStatus("services", false)
	if len(f.services) != 2 || !f.synced {
		t.Fatalf("with the API server away: %v, synced %v", f.services, f.synced)
	}
	// What is deleted while nobody looks is gone in the next list.
	s.set("services", "db", nil)
	s.expire()
	s.stop(false)
	f.until("the deletion", func() bool { return f.services[dbName] == nil })
	f.untilStatus("services", true)
	if f.services[webName] == nil {
		t.Error("the Service that stayed is gone")
	}
}

// The longer the API server is away, the more rarely it is asked for. That it is
// back must not be missed for long.
func TestTheEndOfALongOutageIsSeenSoon(t *testing.T) {
	t.Parallel()
	const (
		outage = 8500 * time.Millisecond // in which pauses that double reach maxBackoff, and would be far above it
		soon   = 3500 * time.Millisecond
	)
	for name, away := range map[string]func(*fakeServer, bool){"connections are refused": (*fakeServer).leave, "requests are refused": (*fakeServer).stop} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFakeServer(t)
			s.set("services", "web", serviceObject("web", "10.96.0.1"))
			f := follow(t, s)
			f.until("synced", func() bool { return f.synced && len(f.services) == 1 })
			told := f.told
			away(s, true)
			for over := time.After(outage); over != nil; {
				select {
				case u := <-f.updates:
					f.take(u)
				case <-over:
					over = nil
				}
			}
			if f.told != told || !f.synced {
				t.Errorf("during the outage %d changes were told, synced %v", f.told-told, f.synced)
			}
			s.set("services", "db", serviceObject("db", "10.96.0.2"))
			away(s, false)
			back := time.Now()
			f.until("what came meanwhile", func() bool { return f.services[dbName] != nil })
			if took := time.Since(back); took > soon {
				t.Errorf("a change was told %v after the API server was back", took)
			}
			if f.services[webName] == nil {
				t.Error("the Service that stayed is gone")
			}
		})
	}
}

// untilStatus waits for what the source says of its connection.
func (f *follower) untilStatus(resource string, connected bool) {
	f.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		for _, st := range f.queue.Status() {
			if st.Resource == resource && st.Connected == connected {
				return
			}
		}
		select {
		case u := <-f.updates:
			f.take(u)
		case <-tick.C:
		case <-deadline.C:
			f.t.Fatalf("%s never connected=%v: %+v", resource, connected, f.queue.Status())
		}
	}
}

func TestAnExpiredVersionLeadsToANewListAndTellsNothingTwice(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.set("services", "web", serviceObject("web", "10.96.0.1"))
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced && f.services[webName] != nil })
	lists, told := s.listed("services"), f.told
	s.expire()
	s.set("services", "db", serviceObject("db", "10.96.0.2"))
	f.until("what came meanwhile", func() bool { return f.services[dbName] != nil })
	if now := s.listed("services"); now <= lists {
		t.Errorf("%d lists, %d before the version expired", now, lists)
	}
	if f.told != told+1 {
		t.Errorf("%d changes of Services were told, want one", f.told-told)
	}
}

func TestAnAPIWithoutServiceCIDRsIsNoFailure(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.absent["servicecidrs"] = true
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced })
	if f.known {
		t.Error("service CIDRs are known")
	}
}

func TestWhatIsWrongWithAnObjectIsToldOfItAndTakenBack(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	s.set("services", "web", serviceObject("web", "10.96.0.999"))
	s.set("services", "db", serviceObject("db", "10.96.0.2"))
	f := follow(t, s)
	const object = "Service default/web"
	f.until("the problem", func() bool { return len(f.problems[object]) > 0 && f.synced })
	if f.services[dbName] == nil {
		t.Error("the other Service is not served")
	}
	s.set("services", "web", serviceObject("web", "10.96.0.1"))
	f.until("that it is mended", func() bool { return len(f.problems[object]) == 0 && len(f.services[webName].ClusterIPs) == 1 })
	s.set("services", "web", serviceObject("web", "10.96.0.999"))
	f.until("the problem again", func() bool { return len(f.problems[object]) > 0 })
	s.set("services", "web", nil)
	f.until("that its problem went with it", func() bool { return len(f.problems[object]) == 0 && f.services[webName] == nil })
}

func TestLabelsSayWhoseAServiceAndASliceAre(t *testing.T) {
	t.Parallel()
	s := newFakeServer(t)
	other := serviceObject("web", "10.96.0.1")
	other["metadata"].(object)["labels"] = object{"service.kubernetes.io/service-proxy-name": "other"}
	s.set("services", "web", other)
	s.set("endpointslices", "web-1", sliceObject("web-1", "web", "10.0.0.1", object{"service.kubernetes.io/headless": ""}))
	f := follow(t, s)
	f.until("synced", func() bool { return f.synced && f.services[webName] != nil && f.slices[sliceName] != nil })
	if f.services[webName].ProxyName != "other" || !f.slices[sliceName].Headless {
		t.Errorf("Service of proxy %q, slice headless: %v", f.services[webName].ProxyName, f.slices[sliceName].Headless)
	}
	s.set("services", "web", serviceObject("web", "10.96.0.1"))
	f.until("the label gone", func() bool { return f.services[webName].ProxyName == "" })
}
