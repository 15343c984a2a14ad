// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strconv"

	"portolan.dev/portolan/pkg/service"
)

// The annotations that Portolan reads; the first two on Services, the last on
// EndpointSlices.
const (
	// AnnotationAlgorithm is random or maglev, for traffic from outside.
	AnnotationAlgorithm = "portolan.dev/algorithm"
	// AnnotationForwarding is snat, dsr or hybrid, for traffic from outside.
	AnnotationForwarding = "portolan.dev/forwarding-mode"
	// AnnotationWeight is the share of each endpoint of the slice against those
	// of other slices: 1 to 1000, counted by the algorithm maglev.
	AnnotationWeight = "portolan.dev/weight"
)

// outside reads how a Service asks to be served to the outside. What cannot be
// read leaves it to the agent's flags.
func (f *faults) outside(s *service.Service, annotations map[string]string) {
	var err error
	if text, ok := annotations[AnnotationAlgorithm]; ok {
		if s.Algorithm, err = service.ParseAlgorithm(text); err != nil {
			f.add(service.ReasonInvalidField, "annotation %s: %v; until then --algorithm holds", AnnotationAlgorithm, err)
		}
	}
	if text, ok := annotations[AnnotationForwarding]; ok {
		if s.Forwarding, err = service.ParseForwarding(text); err != nil {
			f.add(service.ReasonInvalidField, "annotation %s: %v; until then --forwarding-mode holds", AnnotationForwarding, err)
		}
	}
}

func (f *faults) weight(s *service.EndpointSlice, annotations map[string]string) {
	text, ok := annotations[AnnotationWeight]
	if !ok {
		return
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n < 1 || n > service.MaxWeight {
		f.add(service.ReasonInvalidField, "annotation %s: %q is no weight: use 1 to %d; until then its endpoints count as 1", AnnotationWeight, text, service.MaxWeight)
		return
	}
	s.Weight = uint32(n)
}
