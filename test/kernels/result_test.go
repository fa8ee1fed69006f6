// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// good is the result of a kernel on which all is as it must be.
func good(version string, release [2]int) *result {
	r := newResult(vm.Kernel{Version: version}, release, io.Discard)
	r.receive(wire.Message{Kernel: &wire.Kernel{Release: version, BTF: true, Preemption: "lazy"}})
	for _, g := range groups {
		for _, f := range g.features {
			for _, t := range f.tests {
				name := t.name
				if t.sub != "" {
					name += "/any/" + t.sub
				}
				r.read(t.job, "=== RUN   "+name)
				if f.preemptible && preemptsPrograms(release) {
					r.read(t.job, "    worker_test.go:1: "+skippedByKernel+"3 of 9 calls")
				}
				r.read(t.job, fmt.Sprintf("    --- PASS: %s (0.00s)", name))
			}
		}
	}
	want := plan(release).Trials
	for _, capabilities := range want {
		missing := missingFrom(want[0], capabilities)
		trial := wire.Trial{Capabilities: capabilities, Features: map[string]wire.Outcome{}}
		for _, name := range featureNames {
			var o wire.Outcome
			if must, _ := needs(name, missing); must {
				o.Unsupported = name + " lacks " + missing
			}
			trial.Features[name] = o
		}
		r.receive(wire.Message{Trial: &trial})
	}
	return r
}

func TestJudge(t *testing.T) {
	old, newest := [2]int{5, 10}, [2]int{7, 3}
	for name, tc := range map[string]struct {
		release [2]int
		change  func(*result)
		want    string // of the one problem; "" for none
	}{
		"all well":        {old, func(*result) {}, ""},
		"all well, newer": {newest, func(*result) {}, ""},
		"a test fails": {old, func(r *result) {
			r.read("syscallcount", "--- FAIL: TestExact (1.20s)")
		}, "Exact on all CPUs, read in batches and singly: fail: syscallcount TestExact"},
		"a test is skipped": {old, func(r *result) {
			r.read("l4firewall", "--- SKIP: TestHotChange (0.00s)")
		}, "skip: l4firewall TestHotChange"},
		"a test does not run": {old, func(r *result) {
			delete(r.Tests, "podslots TestSlots")
		}, "podslots TestSlots has not run"},
		"a job ends badly": {old, func(r *result) {
			r.receive(wire.Message{Exit: &wire.Exit{Job: "podslots", Error: "exit status 2"}})
		}, "the tests of podslots end with: exit status 2"},
		"the guest is broken": {old, func(r *result) {
			r.receive(wire.Message{Broken: "no modules"})
		}, "the guest: no modules"},
		"calls are missing on an old kernel": {old, func(r *result) {
			r.read("syscallcount", "=== RUN   TestChurn/sub")
			r.read("syscallcount", "    x.go:1: "+skippedByKernel+"1 of 2 calls")
		}, "syscallcount TestChurn: calls are missing"},
		"no calls are missing on a new one": {newest, func(r *result) {
			clear(r.Skipped)
		}, "no call was missing in syscallcount TestPreempted"},
		"a trial is missing": {old, func(r *result) {
			r.Trials = r.Trials[:len(r.Trials)-1]
		}, "4 trials of capabilities, want 5"},
		"a feature is missing": {old, func(r *result) {
			delete(r.Trials[0].Features, kernelfeature.ConnectDenied)
		}, "2 features were tried, want 3"},
		"a feature is unsupported": {newest, func(r *result) {
			r.Trials[0].Features[kernelfeature.L4Firewall] = wire.Outcome{Unsupported: "no such link"}
		}, "L4Firewall: no such link"},
		"a feature works without a capability": {newest, func(r *result) {
			r.Trials[1].Features[kernelfeature.L4Firewall] = wire.Outcome{}
		}, "L4Firewall: works without BPF"},
		"another reason than the capability": {newest, func(r *result) {
			r.Trials[1].Features[kernelfeature.L4Firewall] = wire.Outcome{Unsupported: "out of luck"}
		}, "L4Firewall: does not name BPF: out of luck"},
		"a feature does not do what its probe says": {newest, func(r *result) {
			r.Trials[0].Features[kernelfeature.SyscallCounter] = wire.Outcome{Wrong: "pins are left"}
		}, "SyscallCounter: pins are left"},
	} {
		t.Run(name, func(t *testing.T) {
			r := good("1.2.3-4", tc.release)
			tc.change(r)
			r.judge(plan(tc.release))
			got := strings.Join(r.Problems, "\n")
			if tc.want == "" && got != "" || tc.want != "" && (len(r.Problems) != 1 || !strings.Contains(got, tc.want)) {
				t.Errorf("problems:\n%s\nwant one: %s", got, tc.want)
			}
		})
	}
}

func TestAgree(t *testing.T) {
	results := func() []*result {
		return []*result{good("5.10.223-1", [2]int{5, 10}), good("7.3.4-1~bpo13+1", [2]int{7, 3})}
	}
	path := filepath.Join(t.TempDir(), "kernels.md")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := document(file, results()); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| | 5.10.223 | 7.3.4 |", "| Exact while a real-time process preempts others | ✓ | ✓ ¹ |",
		"| `SYS_RESOURCE` | all | – |", "Linux 5.4 is too old",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if err := agree(path, results()); err != nil {
		t.Error("the same results:", err)
	}
	later := []*result{good("5.10.240-2", [2]int{5, 10}), good("7.4.1-1", [2]int{7, 4})}
	if err := agree(path, later); err != nil {
		t.Error("later versions:", err)
	}
	other := results()
	other[1].Trials[0].Features[kernelfeature.L4Firewall] = wire.Outcome{Unsupported: "no such link"}
	if err := agree(path, other); err == nil || !strings.Contains(err.Error(), "no such link") || !strings.Contains(err.Error(), "make docs-kernels") {
		t.Error("another result:", err)
	}
	for name, text := range map[string]string{"ends before": string(page[:len(page)/2]), "nothing more": string(page) + "more\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := agree(path, results()); err == nil {
			t.Error("no error where the page", name)
		}
	}
	if err := agree(path+"x", results()); err == nil {
		t.Error("no error where there is no page")
	}
}

func TestReusable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "7.3.json")
	want := good("7.3.4-1", [2]int{7, 3})
	want.Digest = "abc"
	found := func(digest string) *result {
		t.Helper()
		r, err := reusable(path, digest)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if found("abc") != nil {
		t.Error("found what was not saved")
	}
	if err := want.save(path); err != nil {
		t.Fatal(err)
	}
	if found("abd") != nil {
		t.Error("found what is of another digest")
	}
	var pages [2]strings.Builder
	for i, r := range []*result{want, found("abc")} {
		if err := document(&pages[i], []*result{r}); err != nil {
			t.Fatal(err)
		}
	}
	if pages[0].String() != pages[1].String() {
		t.Errorf("what was saved is not what is read:\n%s\n%s", pages[0].String(), pages[1].String())
	}
	want.problem("a problem")
	if err := want.save(path); err != nil {
		t.Fatal(err)
	}
	if found("abc") != nil {
		t.Error("found what had problems")
	}
	if err := os.WriteFile(path, []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reusable(path, "abc"); err == nil {
		t.Error("no error from a damaged file")
	}
}

func TestDigest(t *testing.T) {
	dir := t.TempDir()
	digest := func(texts ...string) string {
		t.Helper()
		var paths []string
		for i, text := range texts {
			path := filepath.Join(dir, fmt.Sprint(i))
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
		d, err := digestOf(paths...)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first, again, other := digest("ab", "c"), digest("ab", "c"), digest("a", "bc")
	if first != again || first == other {
		t.Error("not the same for the same, or the same for other files")
	}
	if _, err := digestOf(filepath.Join(dir, "none")); err == nil {
		t.Error("no error where there is no file")
	}
}

// The page is about everything, or about nothing.
func TestPartial(t *testing.T) {
	for _, o := range []options{
		{series: allSeries, only: "podslots", check: "x"},
		{series: allSeries, arguments: "preempt=full", doc: "x"},
		{series: []string{"6.1"}, check: "x"},
	} {
		if err := run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the page of results is about all") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
