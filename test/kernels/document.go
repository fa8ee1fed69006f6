// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

const introduction = `# Kernels

<!-- Written by make test-kernels. -->

The tests of the eBPF programs run on these kernels of Debian, in QEMU: the packages'
own, unchanged, as the first process of a machine with nothing but the kernel and the
network modules that come with it. ✓ means that all tests of the row have passed there.

`

const lowest = `
Linux 5.4 to 5.9, for which Debian's mirrors have no kernel, are not tested. Linux 5.4
cannot pin the link of a raw tracepoint (system calls are not counted while no agent
runs, from 5.7 on they are) nor link programs to cgroups (5.7); what the agent's probes
find there it reports as unsupported.
`

const skipNote = `¹ Not all of the calls, in the run that wrote this. This kernel may preempt the program
on ` + "`sys_enter`" + ` for another process; until the program goes on, the kernel runs it for
no other call on that CPU, and counts such calls in the program's ` + "`recursion_misses`" + `. No
more calls were missing than it says there. The slower the machine, the more they are.
`

// document writes the table of what works on which kernel.
func document(w io.Writer, results []*result) error {
	var b strings.Builder
	b.WriteString(introduction)
	for _, g := range groups {
		fmt.Fprintf(&b, "## %s\n\n", g.name)
		tableHead(&b, results)
		noted := false
		for _, f := range g.features {
			fmt.Fprintf(&b, "| %s |", f.name)
			for _, r := range results {
				cell := "✓"
				if r.skips(f) {
					cell, noted = "✓ ¹", true
				}
				if err := r.state(f); err != nil {
					cell = "✗ " + err.Error()
				}
				fmt.Fprintf(&b, " %s |", cell)
			}
			b.WriteString("\n")
		}
		if noted {
			b.WriteString("\n" + skipNote)
		}
		b.WriteString("\n")
	}
	capabilities(&b, results)
	b.WriteString(lowest)
	_, err := io.WriteString(w, b.String())
	return err
}

// skips tells whether calls were missing in a test of the feature.
func (r *result) skips(f feature) bool {
	for _, t := range f.tests {
		if r.Skipped[t.job+" "+t.name] {
			return true
		}
	}
	return false
}

func tableHead(b *strings.Builder, results []*result) {
	b.WriteString("| |")
	for _, r := range results {
		fmt.Fprintf(b, " %s |", r.number())
	}
	b.WriteString("\n| --- |" + strings.Repeat(" :---: |", len(results)) + "\n")
}

// number is the kernel's version without Debian's additions.
func (r *result) number() string {
	number, _, _ := strings.Cut(r.Version, "-")
	return number
}

// capabilities writes which feature needs which, and what the agent says without.
func capabilities(b *strings.Builder, results []*result) {
	b.WriteString("## Capabilities\n\nEach was taken from a process of root that had all that are named here, and no other;\nthe features in the table no longer work then, all others do.\n\n")
	tableHead(b, results)
	features := []string{kernelfeature.SyscallCounter, kernelfeature.L4Firewall, kernelfeature.ConnectDenied}
	reasons := map[string][]string{}
	for _, capability := range []string{"BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE"} {
		fmt.Fprintf(b, "| `%s` |", capability)
		for _, r := range results {
			fmt.Fprintf(b, " %s |", r.needing(capability, features, reasons))
		}
		b.WriteString("\n")
	}
	b.WriteString("\nWhat the agent reports without it:\n\n")
	var texts []string
	for text := range reasons {
		texts = append(texts, text)
	}
	slices.Sort(texts)
	for _, text := range texts {
		fmt.Fprintf(b, "- without `%s`: %s\n", strings.Join(reasons[text], "`, `"), text)
	}
}

// needing names the features that fail without a capability, and notes their reasons.
func (r *result) needing(capability string, features []string, reasons map[string][]string) string {
	for _, trial := range r.Trials {
		if slices.Contains(trial.Capabilities, capability) || len(trial.Capabilities) == len(r.Trials)-1 {
			continue
		}
		var failing []string
		for _, name := range features {
			text := trial.Features[name].Unsupported
			if text == "" {
				continue
			}
			failing = append(failing, name)
			if !slices.Contains(reasons[text], capability) {
				reasons[text] = append(reasons[text], capability)
			}
		}
		if len(failing) == len(features) {
			return "all"
		}
		return strings.Join(failing, ", ")
	}
	return "–"
}
