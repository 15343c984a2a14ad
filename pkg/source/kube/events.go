// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"portolan.dev/portolan/pkg/source"
)

// What the API server takes.
const (
	longestNote   = 1024
	longestPrefix = 200 // of an Event's name, before the digest
)

// postTimeout is for an Event whole: nobody waits for it.
const postTimeout = 20 * time.Second

// PostEvent posts an Event on a Service. The Event's name follows from what it
// says, so that a second one of the same hour, of this agent or of another
// node's, is the same Event and nothing is posted twice. A Service that is gone
// needs none.
func (s *Source) PostEvent(ctx context.Context, e source.Event) error {
	ctx, stop := context.WithTimeout(ctx, postTimeout)
	defer stop()
	uid, err := s.serviceUID(ctx, e)
	if err != nil || uid == "" {
		return err
	}
	client, err := s.client(eventsv1.SchemeGroupVersion)
	if err != nil {
		return fmt.Errorf("prepare to post events: %w", err)
	}
	err = client.Post().Namespace(e.Service.Namespace).Resource("events").Body(s.event(e, uid, time.Now())).Do(ctx).Error()
	switch {
	case err == nil, apierrors.IsAlreadyExists(err):
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: %w", source.ErrMayNotPost, err)
	}
	return fmt.Errorf("post event on Service %s: %w", e.Service, err)
}

func (s *Source) event(e source.Event, uid types.UID, now time.Time) *eventsv1.Event {
	said := string(uid) + "\x00" + e.Reason + "\x00" + e.Note + "\x00" + now.UTC().Format("2006010215")
	if e.OnNode {
		said += "\x00" + s.cfg.NodeName
	}
	digest := sha256.Sum256([]byte(said))
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: e.Service.Namespace,
			Name:      cut(e.Service.Name, longestPrefix) + "." + hex.EncodeToString(digest[:8]),
		},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: "portolan.dev/agent",
		ReportingInstance:   cut(s.cfg.NodeName, 128),
		Action:              "Serve",
		Reason:              e.Reason,
		Regarding: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Service", Namespace: e.Service.Namespace, Name: e.Service.Name, UID: uid,
		},
		Note: cut(e.Note, longestNote),
		Type: corev1.EventTypeWarning,
	}
}

// cut shortens a text to a number of bytes, at the end of a character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	end := 0
	for i := range text {
		if i > most {
			break
		}
		end = i
	}
	return text[:end]
}

// serviceUID asks for the uid, by which kubectl finds the Events of an object.
// It lists, because kube-proxy's role lets one list Services and not get them.
func (s *Source) serviceUID(ctx context.Context, e source.Event) (types.UID, error) {
	client, err := s.client(corev1.SchemeGroupVersion)
	if err != nil {
		return "", fmt.Errorf("prepare to read services: %w", err)
	}
	var list corev1.ServiceList
	err = client.Get().Namespace(e.Service.Namespace).Resource("services").VersionedParams(&metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", e.Service.Name).String(), ResourceVersion: "0",
	}, metav1.ParameterCodec).Do(ctx).Into(&list)
	if err != nil {
		return "", fmt.Errorf("read Service %s: %w", e.Service, err)
	}
	for i := range list.Items {
		if list.Items[i].Name == e.Service.Name {
			return list.Items[i].UID, nil
		}
	}
	return "", nil
}
