// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

// documents returns every YAML document of the embedded files by file name.
func documents(t *testing.T) map[string][]string {
	t.Helper()
	docs := map[string][]string{}
	err := fs.WalkDir(objects, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := objects.ReadFile(path)
		docs[path] = strings.Split(string(data), "\n---\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

func TestManifestsHaveNoFieldThatKubernetesLacks(t *testing.T) {
	t.Parallel()
	kinds := map[string]func() any{
		"v1/Node":                           func() any { return &corev1.Node{} },
		"v1/Service":                        func() any { return &corev1.Service{} },
		"discovery.k8s.io/v1/EndpointSlice": func() any { return &discoveryv1.EndpointSlice{} },
	}
	seen := map[string]bool{}
	for path, docs := range documents(t) {
		for _, doc := range docs {
			var head struct{ APIVersion, Kind string }
			if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			kind := head.APIVersion + "/" + head.Kind
			if kinds[kind] == nil {
				t.Errorf("%s: unexpected kind %s", path, kind)
				continue
			}
			seen[kind] = true
			if err := yaml.UnmarshalStrict([]byte(doc), kinds[kind]()); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if len(seen) != len(kinds) {
		t.Errorf("only the kinds %v are shown", seen)
	}
}

func TestSlicesNameThePodsThatTheDemoMakes(t *testing.T) {
	t.Parallel()
	made := map[string]bool{"web-4 14": true, "web-5 15": true} // join during the run
	for _, r := range replicas() {
		made[fmt.Sprintf("%s %d", r.name, r.number)] = true
	}
	for path, docs := range documents(t) {
		for _, doc := range docs {
			var slice discoveryv1.EndpointSlice
			if !strings.Contains(doc, "kind: EndpointSlice") {
				continue
			}
			if err := yaml.Unmarshal([]byte(doc), &slice); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			for _, e := range slice.Endpoints {
				address := e.Addresses[0]
				last := address[strings.LastIndexAny(address, ".:")+1:]
				if pod := e.TargetRef.Name + " " + last; !made[pod] {
					t.Errorf("%s: %s at %s is no pod of the demo", path, e.TargetRef.Name, address)
				}
			}
		}
	}
}
