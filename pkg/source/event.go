// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"

	"portolan.dev/portolan/pkg/service"
)

// ErrMayNotPost means that the API server lets this agent post no Events.
var ErrMayNotPost = errors.New("the agent's role does not let it create events of events.k8s.io")

// Event is something about a Service that its owner should see beside it: a
// warning.
type Event struct {
	Service service.Name
	// Reason is one word in upper camel case, for machines.
	Reason string
	// Note says what is wrong and what mends it.
	Note string
	// OnNode: it is so on this node. Otherwise every node says the same, and
	// one of them saying it is enough.
	OnNode bool
}
