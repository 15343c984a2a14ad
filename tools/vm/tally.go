// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
)

// tally counts the verdicts of `go test -v` in a stream, and remembers why
// tests were skipped, so that a run says at its end what it did not look at.
type tally struct {
	passed, failed int
	skipped        []string
	line           []byte            // not ended yet
	current        string            // the test that prints
	said           map[string]string // what each test printed last
}

// Write takes any piece of the stream.
func (c *tally) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		c.line = append(c.line, line...)
		if ended {
			c.count(strings.TrimSpace(string(c.line)))
			c.line = c.line[:0]
		}
		rest = after
	}
	return len(p), nil
}

// count looks at one line. What a test says before it is skipped is the reason.
func (c *tally) count(line string) {
	mark, rest, _ := strings.Cut(line, " ")
	verdict, name, _ := strings.Cut(rest, ": ")
	name, _, _ = strings.Cut(name, " ")
	switch {
	case mark == "===":
		if _, name, ok := strings.Cut(rest, " "); ok {
			c.current = strings.TrimSpace(name)
		}
	case mark == "---" && verdict == "PASS":
		c.passed++
	case mark == "---" && verdict == "FAIL":
		c.failed++
	case mark == "---" && verdict == "SKIP":
		c.skipped = append(c.skipped, name+": "+c.said[name])
	case c.said == nil:
		c.said = map[string]string{c.current: line}
	default:
		c.said[c.current] = line
	}
}

// String lists skips, then counts.
func (c *tally) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped", c.passed, c.failed, len(c.skipped))
	for _, s := range c.skipped {
		fmt.Fprintf(&b, "\n  skipped %s", s)
	}
	if len(c.skipped) > 0 {
		b.WriteString("\n ")
	}
	return b.String()
}
