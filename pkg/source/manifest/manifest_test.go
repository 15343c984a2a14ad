// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portolan.dev/portolan/pkg/service"
	"portolan.dev/portolan/pkg/source"
)

// watched is a directory under a source, and all that the source has told.
type watched struct {
	t   *testing.T
	dir string
	q   *source.Queue
	all source.Update
}

func watch(t *testing.T) *watched {
	w := &watched{t: t, dir: t.TempDir(), q: source.NewQueue()}
	w.all.Services = map[service.Name]*service.Service{}
	w.all.Slices = map[service.Name]*service.EndpointSlice{}
	w.all.Problems = map[string][]service.Problem{}
	return w
}

func (w *watched) run() {
	s, err := New(Config{Dir: w.dir, NodeName: "here", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, w.q) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

func (w *watched) write(name, text string) {
	w.t.Helper()
	tmp := filepath.Join(w.dir, name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

// until takes updates until the condition holds.
func (w *watched) until(what string, holds func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for !holds() {
		u, err := w.q.Take(ctx)
		if err != nil {
			w.t.Fatalf("%s: did not come; services %v problems %v", what, w.all.Services, w.all.Problems)
		}
		for k, v := range u.Services {
			w.all.Services[k] = v
		}
		for k, v := range u.Slices {
			w.all.Slices[k] = v
		}
		for k, v := range u.Problems {
			w.all.Problems[k] = v
		}
		if u.Node != nil {
			w.all.Node = u.Node
		}
		w.all.Synced, w.all.ServiceCIDRs = u.Synced, u.ServiceCIDRs
	}
}

func (w *watched) has(name string) bool {
	return w.all.Services[service.Name{Namespace: "default", Name: name}] != nil
}

const webYAML = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
# a comment only
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.244.1.2], nodeName: here}]
`

func TestFilesAreReadAndTheirChangesFollowed(t *testing.T) {
	w := watch(t)
	w.write("web.yaml", webYAML)
	w.write("node.yml", `{apiVersion: v1, kind: List, items: [
		{apiVersion: v1, kind: Node, metadata: {name: here, labels: {topology.kubernetes.io/zone: a}}},
		{apiVersion: v1, kind: Node, metadata: {name: there}},
		{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: k}, spec: {cidrs: [10.96.0.0/16]}}]}`)
	w.run()
	w.until("all objects", func() bool {
		return w.all.Synced && w.has("web") && len(w.all.Slices) == 1 && w.all.Node != nil && w.all.Node.Zone == "a" && len(w.all.ServiceCIDRs) == 1
	})
	w.write("web.yaml", strings.ReplaceAll(webYAML, "10.96.0.10", "10.96.0.11"))
	w.until("the change", func() bool {
		s := w.all.Services[service.Name{Namespace: "default", Name: "web"}]
		return s != nil && s.ClusterIPs[0].String() == "10.96.0.11"
	})
	if err := os.Remove(filepath.Join(w.dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	w.until("the removal", func() bool { return !w.has("web") })
}

func TestABrokenFileIsNamedAndItsLastGoodStateStays(t *testing.T) {
	w := watch(t)
	w.write("web.yaml", webYAML)
	w.run()
	w.until("the Service", func() bool { return w.all.Synced && w.has("web") })
	w.write("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [")
	w.until("the problem", func() bool {
		list := w.all.Problems["file web.yaml"]
		return len(list) == 1 && strings.Contains(list[0].Message, "last good state stays") && strings.Contains(list[0].Message, "document 1")
	})
	if !w.has("web") {
		t.Error("the Service went with its file's last good state")
	}
	w.write("other.yaml", strings.ReplaceAll(webYAML, "web", "other"))
	w.until("another file", func() bool { return w.has("other") })
	w.write("web.yaml", webYAML)
	w.until("the mend", func() bool { return len(w.all.Problems["file web.yaml"]) == 0 })
}

func TestTheSameObjectInTwoFilesIsTheFirstFiles(t *testing.T) {
	w := watch(t)
	w.write("a.yaml", webYAML)
	w.write("b.yaml", strings.ReplaceAll(webYAML, "10.96.0.10", "10.96.0.99"))
	w.run()
	w.until("the problem", func() bool { return len(w.all.Problems["Service default/web"]) == 1 })
	p := w.all.Problems["Service default/web"][0]
	if !strings.Contains(p.Message, "a.yaml") || !strings.Contains(p.Message, "b.yaml") {
		t.Errorf("the problem names not both files: %s", p.Message)
	}
	if got := w.all.Services[service.Name{Namespace: "default", Name: "web"}].ClusterIPs[0].String(); got != "10.96.0.10" {
		t.Errorf("ClusterIP %s", got)
	}
}

func TestUnknownKindsAndFieldsAreNamedAndTheRestIsUsed(t *testing.T) {
	w := watch(t)
	w.write("mixed.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n"+strings.Replace(webYAML, "metadata: {name: web}", "metadata: {name: web}\nspce: {}", 1))
	w.run()
	w.until("the Service and two problems", func() bool { return w.has("web") && len(w.all.Problems["file mixed.yaml"]) == 2 })
}

func TestADirectoryThatIsMissingIsAProblemUntilItComes(t *testing.T) {
	w := watch(t)
	parent := w.dir
	w.dir = filepath.Join(parent, "later")
	w.run()
	w.until("the problem", func() bool { return len(w.all.Problems["directory "+w.dir]) == 1 })
	if w.all.Synced {
		t.Error("synced without having read anything")
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("web.yaml", webYAML)
	w.until("the Service", func() bool { return w.has("web") && w.all.Synced && len(w.all.Problems["directory "+w.dir]) == 0 })
}

func TestServiceCIDRsGoWithTheirManifests(t *testing.T) {
	t.Parallel()
	w := watch(t)
	const object = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: name-of}\nspec: {cidrs: [prefix-of]}\n"
	w.write("a.yaml", strings.NewReplacer("name-of", "a", "prefix-of", "10.96.0.0/16").Replace(object))
	w.write("b.yaml", strings.NewReplacer("name-of", "b", "prefix-of", "10.97.0.0/16").Replace(object))
	w.run()
	w.until("both are known", func() bool { return len(w.all.ServiceCIDRs) == 2 })
	for _, c := range []struct {
		file string
		left int
	}{{"a.yaml", 1}, {"b.yaml", 0}} {
		if err := os.Remove(filepath.Join(w.dir, c.file)); err != nil {
			t.Fatal(err)
		}
		w.until(c.file+" is gone", func() bool { return len(w.all.ServiceCIDRs) == c.left })
	}
}
