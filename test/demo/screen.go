// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"portolan.dev/portolan/test/world"
)

// screen prints the demo and keeps count of its claims. It is used by one
// goroutine.
type screen struct {
	out    io.Writer
	colour bool
	claims int
	broken []string // the claims that did not hold
}

// newScreen uses colours if out is a terminal and NO_COLOR is not set.
func newScreen(out *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &screen{out: out, colour: err == nil && os.Getenv("NO_COLOR") == ""}
}

// The styles the screen uses, as SGR parameters.
const (
	bold  = "1"
	faint = "2"
	green = "32"
	red   = "1;31"
	blue  = "36"
)

func (s *screen) paint(style, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// heading begins a part of the demo.
func (s *screen) heading(title, note string) {
	fmt.Fprintf(s.out, "\n%s  %s\n", s.paint(bold, title), s.paint(faint, note))
}

// claim prints one line with a mark and counts it. The line's first two
// columns are what is claimed about and how; the rest is what was seen.
func (s *screen) claim(holds bool, what, how, format string, args ...any) {
	mark := s.paint(green, "✓")
	seen := fmt.Sprintf(format, args...)
	s.claims++
	if !holds {
		mark = s.paint(red, "✗")
		s.broken = append(s.broken, strings.Join(strings.Fields(what+" "+how+": "+seen), " "))
	}
	fmt.Fprintf(s.out, " %s %-10s%-13s%s\n", mark, what, how, seen)
}

// check counts a claim about what was just quoted; problem is empty if it holds.
func (s *screen) check(what, problem string) {
	if problem == "" {
		s.claims++
		return
	}
	s.claim(false, what, "", "%s", problem)
}

// end prints the last line.
func (s *screen) end(format string, args ...any) {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(green, fmt.Sprintf(format, args...)))
}

// quote prints another program's output, indented.
func (s *screen) quote(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(s.out, " %s\n", strings.TrimRight(line, " \n"))
	}
}

// bars shows how a report's answers spread over the backends: 120 of 300
// answers by web-1 as "web-1 ████ 120".
func (s *screen) bars(r world.Report) string {
	const full, eighths = 10, 8 // characters for all answers together
	most := 0
	for _, n := range r.Backends {
		most = max(most, n)
	}
	width := most*full/max(r.Total, 1) + 1
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(r.Backends)) {
		n := r.Backends[name]
		length := n * full * eighths / max(r.Total, 1)
		bar := strings.Repeat("█", length/eighths)
		if rest := length % eighths; rest > 0 {
			bar += string(rune('█' + eighths - rest)) // U+2589 … U+258F get thinner
		}
		pad := strings.Repeat(" ", width-len([]rune(bar)))
		parts = append(parts, fmt.Sprintf("%s %s%s %3d", name, s.paint(blue, bar), pad, n))
	}
	if r.Failed > 0 {
		parts = append(parts, s.paint(red, fmt.Sprintf("%d failed, first: %v", r.Failed, r.Failures[0])))
	}
	return strings.Join(parts, "  ")
}

// without cuts columns out of a table whose cells are aligned below their
// headers, which are set two or more blanks apart.
func without(table string, columns ...string) string {
	header, _, _ := strings.Cut(table, "\n")
	var out strings.Builder
	for line := range strings.Lines(table) {
		line = strings.TrimRight(line, "\n")
		for _, column := range columns {
			begin := strings.Index(header, column)
			if begin < 0 || begin >= len(line) {
				continue
			}
			end := begin + len(column)
			for end < len(header) && header[end] == ' ' {
				end++
			}
			if end == len(header) || end > len(line) {
				end = len(line) // the last column is as wide as its cells
			}
			// Mark rather than cut, so that the offsets of the other columns
			// stay true; what is marked is cut below.
			line = line[:begin] + strings.Repeat("\x00", end-begin) + line[end:]
		}
		fmt.Fprintln(&out, strings.TrimRight(strings.ReplaceAll(line, "\x00", ""), " "))
	}
	return out.String()
}
