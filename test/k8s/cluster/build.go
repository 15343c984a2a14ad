// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Environment variables that name binaries to use instead of building them.
const (
	AgentEnv        = "PORTOLAN_AGENT"
	CLIEnv          = "PORTOLAN_CLI"
	ControlPlaneEnv = "PORTOLAN_KCP"
)

// kubernetesVersion is what the API server says of itself; it must agree with
// kcp/go.mod.
const kubernetesVersion = "v1.36.3"

// BuildControlPlane builds the kcp binary into the repository's build
// directory and returns its path. The first build compiles Kubernetes, which
// takes minutes; later ones take seconds.
func BuildControlPlane() (string, error) {
	if path := os.Getenv(ControlPlaneEnv); path != "" {
		return path, nil
	}
	root, err := repository()
	if err != nil {
		return "", err
	}
	const version = "k8s.io/component-base/version."
	major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	flags := strings.Join([]string{
		"-s -w",
		"-X " + version + "gitVersion=" + kubernetesVersion,
		"-X " + version + "gitMajor=" + major,
		"-X " + version + "gitMinor=" + minor,
	}, " ")
	out := filepath.Join(root, "build", "kcp")
	return out, goBuild(filepath.Join(root, "test", "k8s", "kcp"), "-trimpath", "-ldflags", flags, "-o", out, ".")
}

// BuildAgent builds bin/portolan-agent and returns its path.
func BuildAgent() (string, error) { return buildCommand("portolan-agent", AgentEnv) }

// BuildCLI builds bin/portolan and returns its path.
func BuildCLI() (string, error) { return buildCommand("portolan", CLIEnv) }

func buildCommand(name, env string) (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	root, err := repository()
	if err != nil {
		return "", err
	}
	out := filepath.Join(root, "bin", name)
	return out, goBuild(root, "-o", out, "./cmd/"+name)
}

func goBuild(dir string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build in %s: %w\n%s", dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// repository is the root of the source tree, two levels above this module.
func repository() (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "portolan.dev/portolan")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w; run from inside test/k8s", err)
	}
	return strings.TrimSpace(string(out)), nil
}
