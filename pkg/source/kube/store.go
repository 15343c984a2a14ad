// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// store takes objects from a reflector, hands them on and keeps no more than
// their names and versions: what a new list must be compared with.
type store struct {
	kind   string
	queue  *source.Queue
	handle func(obj any, gone bool) []service.Problem
	listed func(objects int)
	event  func(objects int)

	mu    sync.Mutex
	known map[key]*entry
}

type key struct{ namespace, name string }

type entry struct {
	version  string
	problems bool // some were reported of it
}

func newStore(kind string, q *source.Queue, handle func(any, bool) []service.Problem) *store {
	return &store{kind: kind, queue: q, handle: handle, known: map[key]*entry{}}
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error {
	meta, err := s.meta(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(meta, obj)
	s.event(len(s.known))
	return nil
}

func (s *store) meta(obj any) (metav1.Object, error) {
	meta, ok := obj.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("read %s: got a %T", s.kind, obj)
	}
	return meta, nil
}

// set hands an object on unless it is known in this version.
func (s *store) set(meta metav1.Object, obj any) {
	k := key{meta.GetNamespace(), meta.GetName()}
	e := s.known[k]
	if e != nil && e.version == meta.GetResourceVersion() {
		return
	}
	if e == nil {
		e = &entry{}
		s.known[k] = e
	}
	e.version = meta.GetResourceVersion()
	problems := s.handle(obj, false)
	if len(problems) > 0 || e.problems {
		s.queue.SetProblems(s.object(k), problems)
		e.problems = len(problems) > 0
	}
}

func (s *store) object(k key) string { return s.kind + " " + k.namespace + "/" + k.name }

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error {
	meta, err := s.meta(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key{meta.GetNamespace(), meta.GetName()}, obj)
	s.event(len(s.known))
	return nil
}

func (s *store) remove(k key, obj any) {
	e := s.known[k]
	if e == nil {
		return
	}
	delete(s.known, k)
	s.handle(obj, true)
	if e.problems {
		s.queue.SetProblems(s.object(k), nil)
	}
}

// Replace implements cache.ReflectorStore: a complete list. Only what differs
// from what is known goes on.
func (s *store) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := make(map[key]bool, len(list))
	for _, obj := range list {
		meta, err := s.meta(obj)
		if err != nil {
			return err
		}
		seen[key{meta.GetNamespace(), meta.GetName()}] = true
		s.set(meta, obj)
	}
	for k := range s.known {
		if !seen[k] {
			s.remove(k, newObject(s.kind, k))
		}
	}
	s.listed(len(s.known))
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (s *store) Resync() error { return nil }

// newObject is an object of which only the name is known.
func newObject(kind string, k key) any {
	meta := metav1.ObjectMeta{Namespace: k.namespace, Name: k.name}
	switch kind {
	case "Service":
		return &corev1.Service{ObjectMeta: meta}
	case "EndpointSlice":
		return &discoveryv1.EndpointSlice{ObjectMeta: meta}
	case "Node":
		return &corev1.Node{ObjectMeta: meta}
	}
	return &networkingv1.ServiceCIDR{ObjectMeta: meta}
}
