// SPDX-License-Identifier: Apache-2.0

// Package arrows_test checks who imports whom. Imports point down only: cmd,
// pkg, loader, maps, bpf; what decides is pure; Kubernetes ends at the sources.
package arrows_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "portolan.dev/portolan/"

// rules: a package below a path imports nothing below the paths it may not.
var rules = []struct{ path, mayNot, why string }{
	{"bpf", module, "bindings have no logic"},
	{"maps", module + "loader", "tables know no programs"},
	{"maps", module + "pkg", "tables know no Kubernetes"},
	{"loader", module + "pkg", "loading knows no Kubernetes"},
	{"maps", "k8s.io/", "tables know no Kubernetes"},
	{"loader", "k8s.io/", "loading knows no Kubernetes"},
	{"pkg/service", module, "the model is pure data"},
	{"pkg/service", "k8s.io/", "the model is pure data"},
	{"pkg/compile", module + "maps", "deciding is pure"},
	{"pkg/compile", module + "loader", "deciding is pure"},
	{"pkg/compile", module + "bpf", "deciding is pure"},
	{"pkg/compile", "k8s.io/", "Kubernetes ends at the sources"},
	{"pkg/compile", "os", "deciding does no I/O"},
	{"pkg/compile", "net/http", "deciding does no I/O"},
	{"pkg/reconcile", "k8s.io/", "Kubernetes ends at the sources"},
	{"pkg/reconcile", module + "loader", "programs are attached through a function"},
	{"pkg", "k8s.io/client-go/kubernetes", "the full clientset is twice the agent"},
	{"pkg", module + "cmd", "imports point down"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func TestImportsPointDown(t *testing.T) {
	command := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...")
	command.Dir = "../.."
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; packages++ {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		check(t, p)
	}
	if packages < 10 {
		t.Errorf("only %d packages were looked at", packages)
	}
}

func check(t *testing.T, p listed) {
	path := strings.TrimPrefix(p.ImportPath, module)
	for _, rule := range rules {
		if path != rule.path && !strings.HasPrefix(path, rule.path+"/") {
			continue
		}
		for _, imported := range p.Imports {
			if imported == rule.mayNot || strings.HasPrefix(imported, strings.TrimSuffix(rule.mayNot, "/")+"/") {
				t.Errorf("%s imports %s: %s", path, imported, rule.why)
			}
		}
	}
	if imported := "k8s.io/client-go/"; path != "pkg/source/kube" && path != "cmd/portolan" {
		for _, i := range p.Imports {
			if strings.HasPrefix(i, imported) {
				t.Errorf("%s imports %s: the only user of client-go is pkg/source/kube (and jsonpath in cmd/portolan)", path, i)
			}
		}
	}
}
