// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Schedule binds pods that name no node to nodes in turn, passing over those that
// are cordoned, until ctx ends. It asks nothing of a pod and nothing else of a
// node.
func Schedule(ctx context.Context, client kubernetes.Interface, nodes []string, log *slog.Logger) {
	next := 0
	place := func(pod *corev1.Pod) {
		if pod.DeletionTimestamp != nil {
			return
		}
		node := nodes[next%len(nodes)]
		next++
		for range nodes {
			if !cordoned(ctx, client, node) {
				break
			}
			node = nodes[next%len(nodes)]
			next++
		}
		if err := bind(ctx, client, pod, node); err != nil && ctx.Err() == nil {
			log.Error("pod is not bound", "pod", pod.Name, "node", node, "err", err)
		}
	}
	watchPods(ctx, client, "", podHandler{
		present: place,
		gone:    func(*corev1.Pod) {}, // Bound, or deleted.
		all: func(pods []*corev1.Pod) {
			for _, pod := range pods {
				place(pod)
			}
		},
	})
}

func cordoned(ctx context.Context, client kubernetes.Interface, name string) bool {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	return err == nil && node.Spec.Unschedulable
}

func bind(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, node string) error {
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}
	return untilAnswered(ctx, func() error {
		return client.CoreV1().Pods(pod.Namespace).Bind(ctx, binding, metav1.CreateOptions{})
	})
}
