// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"testing"

	"portolan.dev/portolan/test/world"
)

func TestClientsOutsideReachEndpointsHereAndElsewhere(t *testing.T) {
	for _, m := range some(t, modes...) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, m)
			s.serve(webService(), s.near[0], s.near[1], s.far[0], s.far[1])
			for name, addr := range s.frontends() {
				for _, proto := range []string{"tcp", "udp"} {
					report := world.Must(s.client.DialMany(proto, addr, 80))(t)
					if report.Failed > 0 || len(report.Backends) != 4 {
						t.Errorf("%s %s: %d failed, answers %v, first failure %+v", name, proto, report.Failed, report.Backends, report.Failures)
					}
				}
			}
		})
	}
}
