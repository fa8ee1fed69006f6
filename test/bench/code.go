// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// code runs the Go benchmarks of the controller's pure code.
func (b *bench) code(ctx context.Context, _ memory) error {
	root, err := harness.Root()
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=.", "-benchmem", "./controllers/configmaps")
	command.Dir = root
	out, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("running the Go benchmarks: %w\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		b.addBenchmark(strings.Fields(line))
	}
	return nil
}

// addBenchmark adds the figures of a line such as
// "BenchmarkPlan-2  100000  1234 ns/op  56 B/op  7 allocs/op".
func (b *bench) addBenchmark(fields []string) {
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
		return
	}
	name, _, _ := strings.Cut(fields[0], "-")
	for i := 2; i+1 < len(fields); i += 2 {
		if value, err := strconv.ParseFloat(fields[i], 64); err == nil {
			b.table.add(name, value, fields[i+1])
		}
	}
}
