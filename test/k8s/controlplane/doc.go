// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs a real Kubernetes control plane for tests: etcd,
// kube-apiserver and kube-controller-manager as child processes of the test,
// with the Service controllers switched on and no kubelet, no scheduler and no
// node lifecycle controller (without heartbeats it would make every endpoint
// unready).
//
// It knows nothing of Portolan and nothing of the test's topology: the caller
// says how a child is started (in which network namespace) and how the API
// server is dialled. It may import client-go and the standard library.
//
// Invariant: a Plane owns its children. Whatever ends a test, Stop ends every
// process that Start and its siblings began, and waits for it.
package controlplane
