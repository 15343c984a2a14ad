// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// watchPods tells handler of all pods with spec.nodeName node until ctx ends.
//
// It is no informer because an informer's pause between two attempts to reach
// the API server grows to half a minute: a test that takes the API server down
// would then wait for this package and not for what it tests.
func watchPods(ctx context.Context, client kubernetes.Interface, node string, handler podHandler) {
	source := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", node))
	cache.NewReflectorWithOptions(source, &corev1.Pod{}, handler, cache.ReflectorOptions{
		Backoff: &wait.Backoff{Duration: retryInterval, Cap: time.Second, Factor: 2, Steps: 5},
	}).RunWithContext(ctx)
}

// podHandler is told what happens to pods, from one goroutine. It takes the
// place of a reflector's store.
type podHandler struct {
	present func(*corev1.Pod)   // created or changed
	gone    func(*corev1.Pod)   // deleted
	all     func([]*corev1.Pod) // these and no others exist
}

func (h podHandler) Add(obj any) error    { return with(obj, h.present) }
func (h podHandler) Update(obj any) error { return with(obj, h.present) }
func (h podHandler) Delete(obj any) error { return with(obj, h.gone) }
func (h podHandler) Resync() error        { return nil }

func (h podHandler) Replace(objs []any, _ string) error {
	pods := make([]*corev1.Pod, 0, len(objs))
	for _, obj := range objs {
		if pod, ok := obj.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	h.all(pods)
	return nil
}

// with calls f with obj, which is a pod: the reflector has checked it.
func with(obj any, f func(*corev1.Pod)) error {
	if pod, ok := obj.(*corev1.Pod); ok {
		f(pod)
	}
	return nil
}
