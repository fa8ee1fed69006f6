// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// suite is Go benchmarks of one package that are run in one process.
type suite struct {
	folder string // relative to the module
	names  string // a regular expression
	times  int    // how many rounds each has; 0: as the benchmark likes
	anew   int    // how often each is set up and run; 0: once
	whole  bool   // -short would leave out what it needs
}

// reported is what benchmarks reported: "Name unit" (of a sub-benchmark
// "Name/sub unit") to its values, one for each time that it was run.
type reported map[string][]float64

// run runs the benchmarks and adds what they report.
func (s *suite) run(ctx context.Context, short bool, into reported) error {
	args := []string{"test", "-run=^$", "-bench=" + s.names, "-timeout=60m"}
	if s.times > 0 {
		args = append(args, fmt.Sprintf("-benchtime=%dx", s.times))
	}
	if s.anew > 0 {
		args = append(args, fmt.Sprintf("-count=%d", s.anew))
	}
	if short && !s.whole {
		args = append(args, "-short")
	}
	say("go %s ./%s", strings.Join(args, " "), s.folder)
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+s.folder)...)
	// To be interrupted, so that it can remove what it has made.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running the benchmarks of %s: %w\n%s", s.folder, err, &out)
	}
	return into.read(out.String())
}

// read reads what `go test -bench` prints.
func (m reported) read(text string) error {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if i := strings.LastIndex(name, "-"); i > 0 { // the number of CPUs
			name = name[:i]
		}
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return fmt.Errorf("reading the result %q: %w", line, err)
			}
			key := name + " " + fields[i+1]
			m[key] = append(m[key], value)
		}
	}
	return nil
}

// need returns the median of a value that a benchmark must have reported.
func (m reported) need(name string) (float64, error) {
	values := slices.Sorted(slices.Values(m[name]))
	if len(values) == 0 {
		return 0, fmt.Errorf("no benchmark has reported %q", name)
	}
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2, nil
}
