// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net/url"
	"time"

	"k8s.io/client-go/tools/metrics"
)

// Requests takes note of requests to the API server. client-go has one such
// place a process, and the first Source with one fills it.
type Requests interface {
	// Increment notes an answer.
	Increment(ctx context.Context, code, method, host string)
	// Observe notes how long it took.
	Observe(ctx context.Context, verb string, u url.URL, took time.Duration)
}

func observe(r Requests) {
	if r != nil {
		metrics.Register(metrics.RegisterOpts{RequestResult: r, RequestLatency: r})
	}
}
