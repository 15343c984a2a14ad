// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Schedule binds pods that name no node to nodes in turn until ctx ends. It
// asks nothing of a pod and nothing of a node.
func Schedule(ctx context.Context, client kubernetes.Interface, nodes []string, log *slog.Logger) {
	next := 0
	place := func(pod *corev1.Pod) {
		if pod.DeletionTimestamp != nil {
			return
		}
		node := nodes[next%len(nodes)]
		next++
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

func bind(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, node string) error {
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}
	return untilAnswered(ctx, func() error {
		return client.CoreV1().Pods(pod.Namespace).Bind(ctx, binding, metav1.CreateOptions{})
	})
}
