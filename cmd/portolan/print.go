// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/duration"
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
// form asked for is one for people. The names are what -o name prints.
func (e *environment) machine(object any, names []string) (bool, error) {
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
	case e.output == "name":
		for _, name := range names {
			fmt.Fprintln(e.out, name)
		}
		return true, nil
	case strings.HasPrefix(e.output, "jsonpath="):
		return true, printPath(e.out, strings.TrimPrefix(e.output, "jsonpath="), object)
	}
	return false, nil
}

// printPath evaluates an expression over the object's JSON fields.
func printPath(w io.Writer, expression string, object any) error {
	if !strings.Contains(expression, "{") {
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

// gap stands between the columns of a table, as kubectl has it.
const gap = 3

// table prints rows under a header, columns aligned as kubectl aligns them.
// Words that judge are coloured in the column judged, counted from 0; -1 is
// none.
func (e *environment) table(header []string, rows [][]string, judged int) error {
	if !e.noHeaders && header != nil {
		rows = append([][]string{header}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			padding := widths[i] - utf8.RuneCountInString(cell) + gap
			if i == judged {
				cell = e.paint(cell)
			}
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", padding))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(e.out, b.String())
	return err
}

// Colours of the words that judge, as terminals number them.
var colours = map[string]string{
	"ok": "32", "yes": "32",
	"warn": "33", "WARN": "33", "degraded": "33", "reading": "33", "away": "33", "not running": "33",
	"fail": "31", "no": "31", "DIFFERS": "31",
}

// paint colours a word that judges, where colours are wanted.
func (e *environment) paint(word string) string {
	colour, ok := colours[word]
	if !ok || !e.coloured {
		return word
	}
	return "\x1b[" + colour + "m" + word + "\x1b[0m"
}

// wantsColour decides whether output to out is coloured. Only what people read
// is: the table form.
func wantsColour(when, output string, out io.Writer) (bool, error) {
	switch when {
	case "always":
		return output == "table", nil
	case "auto":
		return output == "table" && os.Getenv("NO_COLOR") == "" && isTerminal(out), nil
	case "never":
		return false, nil
	}
	return false, fmt.Errorf("--color %s: use auto, always or never", when)
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// age is the time since t as kubectl prints it.
func (e *environment) age(t time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(e.now().Sub(t))
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "<none>"
	}
	return strings.Join(list, ",")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
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
