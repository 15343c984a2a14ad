// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"portolan.dev/portolan/test/world"
)

// apply makes the agents see these objects and no others, and waits until both
// have taken them up: a step that holds of the old objects too would else show
// nothing.
func (s *stage) apply(text string) {
	s.t.Helper()
	old := marker(s.applied)
	s.applied++
	text += fmt.Sprintf(markerObjects, marker(s.applied))
	for _, dir := range s.manifests {
		temp := filepath.Join(dir, ".all.yaml")
		if err := errors.Join(os.WriteFile(temp, []byte(s.fill(text)), 0o600), os.Rename(temp, filepath.Join(dir, "all.yaml"))); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, who := range []string{"pod", "far1"} {
		err := world.Wait(patience, func() error { return s.marked(who, old, marker(s.applied)) })
		if err != nil {
			s.t.Fatalf("%s is on a node that did not take up the objects: %v", who, err)
		}
	}
}

// marked tells whether the node of a pod serves the new marker and the one
// before no more. An agent takes up a file as one change, adding before it
// removes: then the rest of the file is taken up as well.
func (s *stage) marked(who, old, now string) error {
	if r := s.probes[who].Dial("tcp", now+":80", world.Timeout(short)); r.Err() != nil {
		return fmt.Errorf("marker %s: %w", now, r.Err())
	}
	if r := s.probes[who].Dial("tcp", old+":80", world.Timeout(impatient)); r.Err() == nil {
		return fmt.Errorf("marker %s is still served", old)
	}
	return nil
}

// marker is the ClusterIP that says how often objects were applied.
func marker(n int) string { return fmt.Sprintf("10.96.%d.%d", 200+n/200, 1+n%200) }

// markerObjects are added to what a behaviour applies.
const markerObjects = `
---
apiVersion: v1
kind: Service
metadata: {name: marker, namespace: taken-up}
spec:
  clusterIP: %s
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: marker
  namespace: taken-up
  labels: {kubernetes.io/service-name: marker}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [$near1]}]
`

// fill writes addresses for $names, the longest names first.
func (s *stage) fill(text string) string {
	return os.Expand(text, func(name string) string {
		if a, ok := s.addrs[name]; ok {
			return a.String()
		}
		if number, ok := strings.CutPrefix(name, "crowd"); ok {
			return crowdEndpoints(number)
		}
		s.t.Fatalf("$%s is nobody's address", name)
		return ""
	})
}
