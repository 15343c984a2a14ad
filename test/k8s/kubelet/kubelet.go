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
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
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
	created, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create node %s: %w", k.node.Name, err)
	}
	now := metav1.Now()
	created.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}
	for _, a := range k.node.Addresses {
		created.Status.Addresses = append(created.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	if _, err := nodes.UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update status of node %s: %w", k.node.Name, err)
	}
	return nil
}

// Run runs pods until ctx ends, then stops those that still run.
func (k *Kubelet) Run(ctx context.Context) {
	source := cache.NewListWatchFromClient(k.client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", k.node.Name))
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source,
		ObjectType:    &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { k.onPod(ctx, obj) },
			UpdateFunc: func(_, obj any) { k.onPod(ctx, obj) },
			DeleteFunc: k.onGone,
		},
	})
	controller.RunWithContext(ctx)
	k.wg.Wait()
}

// onPod takes up a pod that was created or changed.
func (k *Kubelet) onPod(ctx context.Context, obj any) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
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
func (k *Kubelet) onGone(obj any) {
	if late, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = late.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.pods[pod.UID]; w != nil {
		delete(k.pods, pod.UID)
		close(w.gone)
	}
}
