// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"

	"portolan.dev/portolan/maps"
	"portolan.dev/portolan/pkg/service"
)

func checkOutput(output string) error {
	switch output {
	case "table", "wide", "json", "yaml", "name":
		return nil
	}
	if strings.HasPrefix(output, "jsonpath=") {
		return nil
	}
	return fmt.Errorf("--output %s: use table, wide, json, yaml, name or jsonpath=EXPR", output)
}

// machine prints an object in a form for programs, or returns false when the
// form asked for is one for people.
func (e *environment) machine(object any) (bool, error) {
	switch {
	case e.output == "json":
		encoder := json.NewEncoder(e.out)
		encoder.SetIndent("", "  ")
		return true, encoder.Encode(object)
	case e.output == "yaml":
		text, err := yaml.Marshal(object)
		if err != nil {
			return true, err
		}
		_, err = e.out.Write(text)
		return true, err
	case strings.HasPrefix(e.output, "jsonpath="):
		return true, printPath(e.out, strings.TrimPrefix(e.output, "jsonpath="), object)
	}
	return false, nil
}

// printPath evaluates an expression over the object's JSON fields.
func printPath(w io.Writer, expression string, object any) error {
	if !strings.HasPrefix(expression, "{") {
		expression = "{" + expression + "}"
	}
	path := jsonpath.New("output")
	if err := path.Parse(expression); err != nil {
		return fmt.Errorf("--output jsonpath: %w", err)
	}
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := path.Execute(&b, plain); err != nil {
		return fmt.Errorf("--output jsonpath: %w", err)
	}
	_, err = fmt.Fprintln(w, b.String())
	return err
}

// table prints rows under a header, columns aligned as kubectl aligns them.
func (e *environment) table(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(e.out, 0, 8, 3, ' ', 0)
	if !e.noHeaders {
		fmt.Fprintln(w, strings.Join(header, "\t"))
	}
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// age is a duration as kubectl prints it.
func age(t time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	d := time.Since(t)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "<none>"
	}
	return strings.Join(list, ",")
}

func protocolName(p uint8) string { return service.Protocol(p).String() }

// backendState names what a backend may be used for.
func backendState(flags uint8) string {
	switch flags & maps.BackendStateMask {
	case maps.BackendActive:
		return "active"
	case maps.BackendDraining:
		return "draining"
	}
	return "dead"
}
