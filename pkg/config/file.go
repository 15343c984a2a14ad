// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// What a file says it is.
const (
	apiVersion          = "portolan.dev/v1"
	kind                = "PortolanConfiguration"
	kubeProxyAPIVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kubeProxyKind       = "KubeProxyConfiguration"
)

// Setting is a flag as a file sets it. A list has any number of values,
// everything else one.
type Setting struct {
	Flag   string
	Values []string
}

// together are flags of which the file must set none when the command line has
// set one: they are one thing under two names, or exclude each other.
var together = [][]string{{"node-name", "hostname-override"}, {"kubeconfig", "manifests"}}

// load reads --config, if it is given, and sets what the command line has not.
func (c *Config) load(f *pflag.FlagSet) error {
	if c.File == "" {
		return nil
	}
	data, err := os.ReadFile(c.File)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	settings, ignored, err := Read(data, f)
	if err != nil {
		return fmt.Errorf("--config %s: %w", c.File, err)
	}
	given := map[string]bool{}
	f.Visit(func(flag *pflag.Flag) {
		given[flag.Name] = true
		for _, group := range together {
			if slices.Contains(group, flag.Name) {
				for _, name := range group {
					given[name] = true
				}
			}
		}
	})
	for _, s := range settings {
		if given[s.Flag] {
			continue
		}
		if err := s.set(f); err != nil {
			return fmt.Errorf("--config %s: %s: %w", c.File, fieldOf(s.Flag), err)
		}
	}
	c.Ignored = ignored
	return nil
}

func (s *Setting) set(f *pflag.FlagSet) error {
	flag := f.Lookup(s.Flag)
	if list, ok := flag.Value.(pflag.SliceValue); ok {
		flag.Changed = true
		return list.Replace(s.Values)
	}
	return f.Set(s.Flag, s.Values[0])
}

// Read takes a configuration file: ours, or kube-proxy's. Of the latter it
// also returns the fields that say something and are ignored, each with the
// reason. Fields that are in neither are an error that names them.
func Read(data []byte, f *pflag.FlagSet) (settings []Setting, ignored []string, err error) {
	fields, err := document(data)
	if err != nil {
		return nil, nil, err
	}
	version, _ := fields["apiVersion"].(string)
	what, _ := fields["kind"].(string)
	delete(fields, "apiVersion")
	delete(fields, "kind")
	switch {
	case version == apiVersion && what == kind:
		settings, err = ours(fields, f)
		return settings, nil, err
	case version == kubeProxyAPIVersion && what == kubeProxyKind:
		return kubeProxy(fields)
	}
	return nil, nil, fmt.Errorf("is kind %q of apiVersion %q; write kind %s of %s, or %s of %s",
		what, version, kind, apiVersion, kubeProxyKind, kubeProxyAPIVersion)
}

// document reads one YAML document without repeated keys.
func document(data []byte) (map[string]any, error) {
	if body := bytes.TrimPrefix(bytes.TrimSpace(data), []byte("---")); bytes.Contains(body, []byte("\n---")) {
		return nil, fmt.Errorf("holds several documents; give a file with one")
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("read YAML: %w", err)
	}
	var fields map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&fields); err != nil {
		return nil, fmt.Errorf("is no object with fields: %w", err)
	}
	return fields, nil
}

// ours reads the fields of a PortolanConfiguration: each is a flag, with its
// name in camel case.
func ours(fields map[string]any, f *pflag.FlagSet) ([]Setting, error) {
	flags := map[string]*pflag.Flag{}
	f.VisitAll(func(flag *pflag.Flag) {
		if configurable(flag) {
			flags[fieldOf(flag.Name)] = flag
		}
	})
	var unknown []string
	var out []Setting
	for name, value := range fields {
		flag := flags[name]
		if flag == nil {
			unknown = append(unknown, name)
			continue
		}
		_, list := flag.Value.(pflag.SliceValue)
		values, err := texts(value, list)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, Setting{flag.Name, values})
	}
	if err := unknownFields(unknown); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Setting) int { return strings.Compare(a.Flag, b.Flag) })
	return out, nil
}

func unknownFields(names []string) error {
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("has no such field: %s; see docs/config.md", strings.Join(names, ", "))
}

// configurable flags may stand in a file: all that are the agent's own.
func configurable(flag *pflag.Flag) bool {
	return !slices.Contains([]string{"config", "help", "proxy-mode", "version"}, flag.Name)
}

// fieldOf is the field of a flag: "healthz-bind-address" is healthzBindAddress.
func fieldOf(flag string) string {
	words := strings.Split(flag, "-")
	for i := 1; i < len(words); i++ {
		words[i] = strings.ToUpper(words[i][:1]) + words[i][1:]
	}
	return strings.Join(words, "")
}

// texts are the values of a field as the command line would have them.
func texts(value any, list bool) ([]string, error) {
	if items, ok := value.([]any); ok {
		if !list {
			return nil, fmt.Errorf("is a list; write one value")
		}
		out := []string{}
		for _, item := range items {
			text, err := scalar(item)
			if err != nil {
				return nil, err
			}
			out = append(out, text)
		}
		return out, nil
	}
	text, err := scalar(value)
	if err != nil {
		return nil, err
	}
	if list {
		return strings.Split(text, ","), nil
	}
	return []string{text}, nil
}

func scalar(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return "", fmt.Errorf("is neither text nor a number nor true or false")
}

// Dump is the configuration that runs, in the form of a file.
func (c *Config) Dump() map[string]any { return c.dump }

func dumpOf(f *pflag.FlagSet) map[string]any {
	out := map[string]any{"apiVersion": apiVersion, "kind": kind}
	f.VisitAll(func(flag *pflag.Flag) {
		if !configurable(flag) {
			return
		}
		name := fieldOf(flag.Name)
		switch v := flag.Value.(type) {
		case pflag.SliceValue:
			out[name] = append([]string{}, v.GetSlice()...)
		default:
			out[name] = plainValue(flag)
		}
	})
	return out
}

func plainValue(flag *pflag.Flag) any {
	text := flag.Value.String()
	switch flag.Value.Type() {
	case "bool":
		return text == "true"
	case "int":
		return json.Number(text)
	}
	return text
}
