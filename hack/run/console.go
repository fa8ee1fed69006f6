// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

// console prints for people: numbered headings, and indented lines below them.
type console struct {
	mu      sync.Mutex
	out     io.Writer
	colours bool
	steps   int
}

func newConsole(out *os.File) *console {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &console{out: out, colours: terminal && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	faint = "2"
	red   = "31"
	green = "32"
)

func (c *console) styled(style, text string) string {
	if !c.colours || style == "" || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// step begins the next step.
func (c *console) step(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps++
	fmt.Fprintf(c.out, "\n%s\n", c.styled(bold, fmt.Sprintf("%d. %s", c.steps, fmt.Sprintf(format, args...))))
}

// say prints lines that belong to the step.
func (c *console) say(format string, args ...any) {
	c.print("", fmt.Sprintf(format, args...))
}

func (c *console) print(style, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintln(c.out, strings.TrimRight("   "+c.styled(style, line), " "))
	}
}

// lines returns a writer that prints whole lines, each behind the prefix.
func (c *console) lines(prefix string) *lineWriter { return &lineWriter{console: c, prefix: prefix} }

type lineWriter struct {
	console *console
	prefix  string
	rest    string
	quiet   atomic.Bool
}

func (w *lineWriter) Write(p []byte) (int, error) {
	text := w.rest + string(p)
	for {
		line, rest, whole := strings.Cut(text, "\n")
		if !whole {
			w.rest = text
			return len(p), nil
		}
		if !w.quiet.Load() {
			w.console.print(faint, w.prefix+line)
		}
		text = rest
	}
}
