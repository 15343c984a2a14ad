// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// retryInterval is waited before a request to an API server that is away is
// made again.
const retryInterval = 100 * time.Millisecond

// worker takes one pod from its start to its end.
type worker struct {
	kubelet  *Kubelet
	pod      *corev1.Pod
	deleting chan time.Duration // the grace period, once a deletion began
	gone     chan struct{}      // closed when the object is gone
}

func (w *worker) run(ctx context.Context) {
	log := w.kubelet.log.With("pod", w.pod.Namespace+"/"+w.pod.Name)
	box, err := w.kubelet.runtime.Run(ctx, w.pod)
	if err != nil {
		log.Error("pod does not start", "err", err)
		w.remove(ctx)
		return
	}
	err = w.report(ctx, box.Addresses())
	if err != nil && ctx.Err() == nil {
		log.Error("pod status is not reported", "err", err)
	}
	deleted := w.serve(ctx)
	if err := box.Stop(); err != nil {
		log.Error("pod does not stop", "err", err)
	}
	if deleted {
		w.remove(ctx)
	}
}

// serve returns when the pod's time is over; deleted means that its object
// waits to be removed.
func (w *worker) serve(ctx context.Context) (deleted bool) {
	select {
	case grace := <-w.deleting:
		// The pod serves for its whole grace period, as one does whose
		// preStop hook sleeps.
		select {
		case <-time.After(grace):
			return true
		case <-w.gone:
		case <-ctx.Done():
		}
	case <-w.gone:
	case <-ctx.Done():
	}
	return false
}

// report sets the status of a pod that runs and is ready. It asks again until
// the API server answers.
func (w *worker) report(ctx context.Context, addrs []netip.Addr) error {
	now := metav1.Now()
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: addrs[0].String(), StartTime: &now}
	for _, a := range addrs {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, t := range []corev1.PodConditionType{
		corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: t, Status: corev1.ConditionTrue, LastTransitionTime: now,
		})
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	pods := w.kubelet.client.CoreV1().Pods(w.pod.Namespace)
	return untilAnswered(ctx, func() error {
		_, err := pods.Patch(ctx, w.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
}

// remove deletes the object for good.
func (w *worker) remove(ctx context.Context) {
	pods := w.kubelet.client.CoreV1().Pods(w.pod.Namespace)
	now := int64(0)
	err := untilAnswered(ctx, func() error {
		return pods.Delete(ctx, w.pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now,
			// Another pod may have the name by now.
			Preconditions: metav1.NewUIDPreconditions(string(w.pod.UID)),
		})
	})
	if err != nil && ctx.Err() == nil {
		w.kubelet.log.Error("pod object is not deleted", "pod", w.pod.Name, "err", err)
	}
}

// untilAnswered repeats request until the API server has decided it; an object
// that is gone or has been replaced is a decision like any other.
func untilAnswered(ctx context.Context, request func() error) error {
	for {
		err := request()
		var status apierrors.APIStatus
		switch {
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
			return nil
		case errors.As(err, &status) && status.Status().Code < 500:
			return err
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
