// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// result is what became of everything on one kernel.
type result struct {
	Series, Version string
	Release         [2]int
	// Digest is that of the kernel and of all that ran on it.
	Digest string
	Kernel wire.Kernel
	Tests  map[string]string // "job TestName/sub": PASS, FAIL or SKIP
	Trials []wire.Trial
	// Skipped: the tests in which the kernel is known to have run programs less often
	// than it had to.
	Skipped map[string]bool
	// Problems is all that is not as it must be; empty is well.
	Problems []string
	log      io.Writer
	began    time.Time
	running  string // the test that runs
}

func newResult(k vm.Kernel, release [2]int, log io.Writer) *result {
	return &result{Release: release, Series: k.Series, Version: k.Version, Tests: map[string]string{}, Skipped: map[string]bool{}, log: log, began: time.Now()}
}

// digestOf returns a digest of the contents of files.
func digestOf(paths ...string) (string, error) {
	sum := sha256.New()
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%d ", len(content))
		sum.Write(content)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (r *result) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// reusable returns a result that was saved, if it is of the same digest and without
// problems, else nil.
func reusable(path, digest string) (*result, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &result{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("reading %s, which can be deleted: %w", path, err)
	}
	if r.Digest != digest || len(r.Problems) > 0 {
		return nil, nil
	}
	fmt.Printf("%-12s as before\n", r.number())
	return r, nil
}

// line sums the result up.
func (r *result) line(took time.Duration) string {
	state := "ok"
	if len(r.Problems) > 0 {
		state = "FAILED\n  " + strings.Join(r.Problems, "\n  ")
	}
	return fmt.Sprintf("%-12s %d tests, %d trials, %.0f s: %s", r.number(), len(r.Tests), len(r.Trials), took.Seconds(), state)
}

// receive takes a message of the guest.
func (r *result) receive(m wire.Message) {
	switch {
	case m.Kernel != nil:
		r.Kernel = *m.Kernel
		fmt.Fprintf(r.log, "%7.2f kernel: %+v\n", time.Since(r.began).Seconds(), r.Kernel)
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

// judge adds to Problems what is not as it must be: every test passes everywhere,
// calls are missing only where that is known, and each capability is needed for just
// what is known.
func (r *result) judge(want wire.Jobs) {
	for _, g := range groups {
		for _, f := range g.features {
			if err := r.state(f); err != nil {
				r.problem("%s: %s: %v", g.name, f.name, err)
			}
		}
	}
	r.judgeSkips()
	if len(r.Trials) != len(want.Trials) {
		r.problem("%d trials of capabilities, want %d", len(r.Trials), len(want.Trials))
	}
	for _, trial := range r.Trials {
		missing := missingFrom(want.Trials[0], trial.Capabilities)
		if len(trial.Features) != len(featureNames) {
			r.problem("with %v: %d features were tried, want %d", trial.Capabilities, len(trial.Features), len(featureNames))
		}
		for name, outcome := range trial.Features {
			if text := judgeOutcome(name, missing, outcome); text != "" {
				r.problem("with %v: %s: %s", trial.Capabilities, name, text)
			}
		}
	}
	slices.Sort(r.Problems)
}

// judgeSkips looks at the tests in which calls were missing that the kernel itself has
// kept from the program.
func (r *result) judgeSkips() {
	if preemptsPrograms(r.Release) {
		if !r.preempts() {
			r.problem("no call was missing in %s: this kernel is not known to run programs on sys_enter to their end (see preemptsPrograms)", preemptionTest)
		}
		return
	}
	for name := range r.Skipped {
		r.problem("%s: calls are missing, which the kernel has kept from the program; no kernel before Linux 7 is known to do so", name)
	}
}

// preemptionTest is the test in which calls are missing where the kernel preempts the
// program.
const preemptionTest = "syscallcount TestPreempted"

// preempts tells whether the kernel was seen to do that.
func (r *result) preempts() bool { return r.Skipped[preemptionTest] }

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
