// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// metapackages of Debian 12 follow a series through its updates. The cloud
// flavour is the small one.
var metapackages = map[string]string{
	"6.1":  "linux-image-cloud-amd64",
	"6.12": "linux-image-6.12-cloud-amd64",
}

func seriesNames() []string { return slices.Sorted(maps.Keys(metapackages)) }

// cacheEnv names the directory for unpacked kernels.
const cacheEnv = "VM_CACHE"

func cacheDir() (string, error) {
	if dir := os.Getenv(cacheEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for kernels: %w; set %s", err, cacheEnv)
	}
	return filepath.Join(dir, "portolan-vm"), nil
}

// fetch returns the directory of the newest kernel of a series: the file
// vmlinux, and lib/modules with its modules. It asks apt and downloads once a
// version. Lists that are out of date are renewed.
func fetch(series string) (string, error) {
	meta, ok := metapackages[series]
	if !ok {
		return "", fmt.Errorf("-kernel %q: the series is one of %s", series, strings.Join(seriesNames(), ", "))
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir, err := fetchListed(cache, series, meta)
	if err == nil {
		return dir, nil
	}
	if _, updateErr := command("", "apt-get", "update", "-q"); updateErr != nil {
		return "", errors.Join(err, updateErr)
	}
	return fetchListed(cache, series, meta)
}

func fetchListed(cache, series, meta string) (string, error) {
	shown, err := command("", "apt-cache", "show", "--no-all-versions", meta)
	if err != nil {
		return "", err
	}
	name := imagePackage(shown, series)
	if name == "" {
		return "", fmt.Errorf("find kernel %s: package %s depends on no image of it; is this Debian 12?", series, meta)
	}
	if shown, err = command("", "apt-cache", "show", "--no-all-versions", name); err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name+"_"+field(shown, "Version"))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := unpackPackage(fresh, name); err != nil {
		return "", fmt.Errorf("fetch %s: %w", name, err)
	}
	// The name appears when all is there, so that a broken download is not
	// taken for a kernel. Another run may have been faster.
	if err := os.Rename(fresh, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// unpackPackage downloads a kernel's package and leaves vmlinux and modules.
func unpackPackage(dir, name string) error {
	// As root apt would drop to a user who may not write here.
	if _, err := command(dir, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("expected one package in %s, found %d", dir, len(packages))
	}
	if _, err := command(dir, "dpkg-deb", "-x", packages[0], "."); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("expected one boot/vmlinuz-*, found %d", len(images))
	}
	packed, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	kernel, err := unpackKernel(packed)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), kernel, 0o644); err != nil {
		return err
	}
	for _, unused := range []string{packages[0], filepath.Join(dir, "boot"), filepath.Join(dir, "usr")} {
		if err := os.RemoveAll(unused); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o755)
}

// imagePackage finds the image of a series among a metapackage's dependencies.
func imagePackage(shown, series string) string {
	for _, d := range strings.Split(field(shown, "Depends"), ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(d), " ")
		if strings.HasPrefix(name, "linux-image-"+series+".") {
			return name
		}
	}
	return ""
}

// field reads one line of a package's description.
func field(shown, name string) string {
	for line := range strings.Lines(shown) {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// command runs a program and returns its output; its complaints are part of
// the error.
func command(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
