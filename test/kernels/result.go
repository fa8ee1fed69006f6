// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// result is what became of everything on one kernel.
type result struct {
	Series, Version string
	Kernel          wire.Kernel
	Tests           map[string]string // "job TestName/sub": PASS, FAIL or SKIP
	Trials          []wire.Trial
	// Skipped: the tests in which the kernel is known to have run programs less often
	// than it had to.
	Skipped map[string]bool
	// Problems is all that is not as it must be; empty is well.
	Problems []string
	log      io.Writer
	began    time.Time
	running  string // the test that runs
}

func newResult(k kernel, log io.Writer) *result {
	return &result{Series: k.series, Version: k.version, Tests: map[string]string{}, Skipped: map[string]bool{}, log: log, began: time.Now()}
}

// receive takes a message of the guest.
func (r *result) receive(m wire.Message) {
	switch {
	case m.Kernel != nil:
		r.Kernel = *m.Kernel
	case m.Output != nil:
		r.read(m.Output.Job, m.Output.Line)
	case m.Exit != nil && m.Exit.Error != "":
		r.problem("the tests of %s end with: %s", m.Exit.Job, m.Exit.Error)
	case m.Trial != nil:
		r.Trials = append(r.Trials, *m.Trial)
	case m.Broken != "":
		r.problem("the guest: %s", m.Broken)
	}
}

// read takes a line of a test binary.
func (r *result) read(job, line string) {
	fmt.Fprintf(r.log, "%7.2f %s: %s\n", time.Since(r.began).Seconds(), job, line)
	if begun, ok := strings.CutPrefix(line, "=== RUN   "); ok {
		r.running, _, _ = strings.Cut(begun, "/")
	}
	if strings.Contains(line, skippedByKernel) {
		r.Skipped[job+" "+r.running] = true
	}
	if end := tested.FindStringSubmatch(line); end != nil {
		r.Tests[job+" "+end[2]] = end[1]
	}
}

func (r *result) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// judge adds to Problems what is not as it must be: every test passes everywhere, and
// each capability is needed for just what is known.
func (r *result) judge(want wire.Jobs) {
	for _, g := range groups {
		for _, f := range g.features {
			if err := r.state(f); err != nil {
				r.problem("%s: %s: %v", g.name, f.name, err)
			}
		}
	}
	if len(r.Trials) != len(want.Trials) {
		r.problem("%d trials of capabilities, want %d", len(r.Trials), len(want.Trials))
	}
	for _, trial := range r.Trials {
		missing := missingFrom(want.Trials[0], trial.Capabilities)
		if len(trial.Features) != 3 {
			r.problem("with %v: %d features were tried, want 3", trial.Capabilities, len(trial.Features))
		}
		for name, outcome := range trial.Features {
			if text := judgeOutcome(name, missing, outcome); text != "" {
				r.problem("with %v: %s: %s", trial.Capabilities, name, text)
			}
		}
	}
	slices.Sort(r.Problems)
}

// missingFrom returns what of all is not in some: at most one, or "".
func missingFrom(all, some []string) string {
	for _, c := range all {
		if !slices.Contains(some, c) {
			return c
		}
	}
	return ""
}

// judgeOutcome says what is wrong with the outcome of a feature without a capability.
func judgeOutcome(name, missing string, outcome wire.Outcome) string {
	must, may := needs(name, missing)
	switch {
	case outcome.Wrong != "":
		return outcome.Wrong
	case !may:
		return outcome.Unsupported
	case outcome.Unsupported == "" && must:
		return "works without " + missing
	case outcome.Unsupported != "" && !strings.Contains(outcome.Unsupported, missing):
		return "does not name " + missing + ": " + outcome.Unsupported
	}
	return ""
}

// state returns nil where all tests of the feature have passed.
func (r *result) state(f feature) error {
	for _, t := range f.tests {
		n := 0
		for name, state := range r.Tests {
			if !t.matches(name) {
				continue
			}
			if n++; state != "PASS" {
				return fmt.Errorf("%s: %s", strings.ToLower(state), name)
			}
		}
		if n == 0 {
			return fmt.Errorf("%s %s has not run", t.job, t.name)
		}
	}
	return nil
}

func (t test) matches(name string) bool {
	if t.sub == "" {
		return name == t.job+" "+t.name
	}
	return strings.HasPrefix(name, t.job+" "+t.name+"/") && strings.HasSuffix(name, "/"+t.sub)
}
