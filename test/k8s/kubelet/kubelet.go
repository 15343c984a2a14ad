// SPDX-License-Identifier: Apache-2.0

// Package kubelet plays the parts of a cluster that a control plane leaves to
// its nodes: it registers a node, binds pods to nodes, runs the pods' processes
// through a Runtime, reports their status and takes them down again with their
// grace period, so that Deployments roll out and endpoints come and go as they
// do in a real cluster.
//
// It may import client-go and the standard library; what a pod is made of
// (namespaces, processes) is the Runtime's business.
//
// Invariant: the order in which others see a pod is a kubelet's. Its processes
// listen before the pod is Ready, and they go on serving after its deletion
// began until the grace period is over; only then does the object go.
package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// Sandbox is a pod that runs.
type Sandbox interface {
	// Addresses are the pod's, the one for status.podIP first.
	Addresses() []netip.Addr
	// Stop ends the pod's processes at once and frees its addresses.
	Stop() error
}

// Runtime runs pods.
type Runtime interface {
	// Run starts the pod's processes and returns when they listen.
	Run(ctx context.Context, pod *corev1.Pod) (Sandbox, error)
}

// Node is what a Kubelet registers itself as.
type Node struct {
	Name      string
	Labels    map[string]string
	Addresses []netip.Addr // The node's own, reported as InternalIP.
}

// Kubelet runs the pods of one node.
type Kubelet struct {
	client  kubernetes.Interface
	node    Node
	runtime Runtime
	log     *slog.Logger

	mu   sync.Mutex // guards pods
	pods map[types.UID]*worker
	wg   sync.WaitGroup
}

// New returns a Kubelet for node; Run makes it work.
func New(client kubernetes.Interface, node Node, runtime Runtime, log *slog.Logger) *Kubelet {
	return &Kubelet{
		client: client, node: node, runtime: runtime,
		log:  log.With("node", node.Name),
		pods: map[types.UID]*worker{},
	}
}

// Register creates the Node object and sets its status.
func (k *Kubelet) Register(ctx context.Context) error {
	nodes := k.client.CoreV1().Nodes()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.node.Name, Labels: k.node.Labels}}
	if _, err := nodes.Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create node %s: %w", k.node.Name, err)
	}
	// A controller may have changed the new object already.
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		created, err := nodes.Get(ctx, k.node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		created.Status.Conditions, created.Status.Addresses = k.conditions(), k.addresses()
		_, err = nodes.UpdateStatus(ctx, created, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("update status of node %s: %w", k.node.Name, err)
	}
	return nil
}

func (k *Kubelet) conditions() []corev1.NodeCondition {
	now := metav1.Now()
	return []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}
}

func (k *Kubelet) addresses() (out []corev1.NodeAddress) {
	for _, a := range k.node.Addresses {
		out = append(out, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return out
}

// Run runs pods until ctx ends, then stops those that still run.
func (k *Kubelet) Run(ctx context.Context) {
	watchPods(ctx, k.client, k.node.Name, podHandler{
		present: func(pod *corev1.Pod) { k.onPod(ctx, pod) },
		gone:    func(pod *corev1.Pod) { k.onGone(pod.UID) },
		all:     func(pods []*corev1.Pod) { k.onAll(ctx, pods) },
	})
	k.wg.Wait()
}

// onAll takes up a list of all pods, as it comes at the start and after an
// outage in which events were missed.
func (k *Kubelet) onAll(ctx context.Context, pods []*corev1.Pod) {
	k.mu.Lock()
	missing := maps.Clone(k.pods)
	k.mu.Unlock()
	for _, pod := range pods {
		delete(missing, pod.UID)
		k.onPod(ctx, pod)
	}
	for uid := range missing {
		k.onGone(uid)
	}
}

// onPod takes up a pod that was created or changed.
func (k *Kubelet) onPod(ctx context.Context, pod *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.pods[pod.UID]
	if w == nil {
		w = &worker{
			kubelet: k, pod: pod,
			deleting: make(chan time.Duration, 1),
			gone:     make(chan struct{}),
		}
		k.pods[pod.UID] = w
		k.wg.Go(func() { w.run(ctx) })
	}
	if pod.DeletionTimestamp != nil {
		grace := time.Duration(0)
		if s := pod.DeletionGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		select {
		case w.deleting <- grace:
		default: // It knows.
		}
	}
}

// onGone ends the processes of a pod whose object is gone already, as a forced
// deletion leaves it.
func (k *Kubelet) onGone(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.pods[uid]; w != nil {
		delete(k.pods, uid)
		close(w.gone)
	}
}
