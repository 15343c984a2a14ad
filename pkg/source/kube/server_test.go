// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeServer is as much of an API server as a reflector sees: lists, watches
// that go on from a version, versions that expire, and times in which it does
// not answer.
type fakeServer struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	version int
	objects map[string]map[string]object // by resource and name
	history []event
	oldest  int // versions before have expired
	absent  map[string]bool
	down    bool
	changed chan struct{} // closed at every change
	lists   map[string]int
}

type object = map[string]any

type event struct {
	version  int
	resource string
	kind     string
	object   object
}

var groups = map[string]string{"services": "v1", "nodes": "v1", "endpointslices": "discovery.k8s.io/v1", "servicecidrs": "networking.k8s.io/v1"}

var kinds = map[string]string{"services": "Service", "nodes": "Node", "endpointslices": "EndpointSlice", "servicecidrs": "ServiceCIDR"}

func newFakeServer(t *testing.T) *fakeServer {
	s := &fakeServer{t: t, version: 1, objects: map[string]map[string]object{}, absent: map[string]bool{}, changed: make(chan struct{}), lists: map[string]int{}}
	for resource := range groups {
		s.objects[resource] = map[string]object{}
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.stop(true) // ends the watches
		s.Server.Close()
	})
	return s
}

// kubeconfig writes a file that leads here.
func (s *fakeServer) kubeconfig() string {
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c}}]\n", s.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// change does something under the lock and wakes the watches.
func (s *fakeServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// set makes an object exist as given, or not at all.
func (s *fakeServer) set(resource, name string, obj object) {
	s.change(func() {
		s.version++
		kind := "MODIFIED"
		old := s.objects[resource][name]
		if old == nil {
			kind = "ADDED"
		}
		if obj == nil {
			kind, obj = "DELETED", old
			delete(s.objects[resource], name)
		} else {
			s.objects[resource][name] = obj
		}
		copied := object{}
		for k, v := range obj {
			copied[k] = v
		}
		meta := object{}
		for k, v := range obj["metadata"].(object) {
			meta[k] = v
		}
		meta["resourceVersion"] = strconv.Itoa(s.version)
		copied["metadata"] = meta
		if kind != "DELETED" {
			s.objects[resource][name] = copied
		}
		s.history = append(s.history, event{s.version, resource, kind, copied})
	})
}

// expire forgets the history: who watches has to list again.
func (s *fakeServer) expire() {
	s.change(func() { s.version++; s.oldest = s.version; s.history = nil })
}

// stop makes the server stop answering, or answer again.
func (s *fakeServer) stop(down bool) { s.change(func() { s.down = down }) }

// leave makes the server refuse connections, or accept them again.
func (s *fakeServer) leave(away bool) {
	s.t.Helper()
	if away {
		s.Listener.Close()
		s.CloseClientConnections()
		return
	}
	again, err := net.Listen("tcp", s.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { again.Close() })
	go s.Config.Serve(again)
}

func (s *fakeServer) listed(resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists[resource]
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	s.mu.Lock()
	down, absent := s.down, s.absent[resource] || groups[resource] == ""
	s.mu.Unlock()
	q := r.URL.Query()
	switch {
	case down:
		status(w, http.StatusServiceUnavailable, "ServiceUnavailable")
	case absent:
		status(w, http.StatusNotFound, "NotFound")
	case q.Get("sendInitialEvents") != "":
		status(w, http.StatusUnprocessableEntity, "Invalid")
	case q.Get("watch") != "":
		s.watch(w, r, resource, q.Get("resourceVersion"))
	default:
		s.list(w, resource)
	}
}

func status(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason})
}

func (s *fakeServer) list(w http.ResponseWriter, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists[resource]++
	items := []object{}
	for _, obj := range s.objects[resource] {
		items = append(items, obj)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(object{"kind": kinds[resource] + "List", "apiVersion": groups[resource], "items": items,
		"metadata": object{"resourceVersion": strconv.Itoa(s.version)}})
}

// watch sends what happens after a version until the server stops answering.
func (s *fakeServer) watch(w http.ResponseWriter, r *http.Request, resource, after string) {
	from, err := strconv.Atoi(after)
	if err != nil {
		status(w, http.StatusBadRequest, "BadRequest")
		return
	}
	w.Header().Set("Content-Type", "application/json;stream=watch")
	out := json.NewEncoder(w)
	w.(http.Flusher).Flush()
	for {
		s.mu.Lock()
		changed, down := s.changed, s.down
		var events []event
		for _, e := range s.history {
			if e.version > from && e.resource == resource {
				events = append(events, e)
			}
		}
		expired := from < s.oldest
		s.mu.Unlock()
		if down {
			return
		}
		if expired {
			out.Encode(object{"type": "ERROR", "object": object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": http.StatusGone, "message": "too old"}})
			return
		}
		for _, e := range events {
			typed := object{"kind": kinds[resource], "apiVersion": groups[resource]}
			maps.Copy(typed, e.object)
			out.Encode(object{"type": e.kind, "object": typed})
			from = e.version
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
