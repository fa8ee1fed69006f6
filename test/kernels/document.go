// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

const introduction = `# Kernels

<!-- Written by make docs-kernels. -->

The tests of the eBPF programs run on these kernels of Debian, in QEMU: the packages'
own, unchanged, as the first process of a machine with nothing but the kernel and the
network modules that come with it. ✓ means that all tests of the row have passed there.
` + "`make test-kernels`" + ` does it again and fails where anything differs from this page; it
takes the newest package of each series, and the newest kernel of all.

`

const preemptionNote = `¹ Linux 7 may preempt the program on ` + "`sys_enter`" + ` for another process, and until the
program goes on the kernel runs it for no other call on that CPU. Such calls are not
counted; ` + "`podconfigmap_controller_ebpf_missed_syscalls_total`" + ` tells how many they are, and in
the tests no more were missing than it says. In other rows of the table calls may be
missing in the same way, the more the slower the machine is. Decision
[25](decisions/0025-preempted-programs.md) tells why, and what can be done.
`

const capabilitiesHead = `## Capabilities

A process of root with these capabilities and no other has every feature. The table
tells what it lacks when one of them is taken away; – says that the kernel needs no such
capability, and the process had none.

`

// featureNames are the features of EBPFNode.
var featureNames = []string{kernelfeature.SyscallCounter, kernelfeature.L4Firewall, kernelfeature.ConnectDenied}

// document writes the table of what works on which kernel.
func document(w io.Writer, results []*result) error {
	var b strings.Builder
	b.WriteString(introduction)
	machines(&b, results)
	for _, g := range groups {
		fmt.Fprintf(&b, "## %s\n\n", g.name)
		tableHead(&b, results)
		noted := false
		for _, f := range g.features {
			fmt.Fprintf(&b, "| %s |", f.name)
			for _, r := range results {
				cell := "✓"
				if f.preemptible && r.preempts() {
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
			b.WriteString("\n" + preemptionNote)
		}
		b.WriteString("\n")
	}
	capabilities(&b, results)
	older(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// machines writes what the kernels are, and which features their probes find.
func machines(b *strings.Builder, results []*result) {
	tableHead(b, results)
	row := func(name string, cell func(*result) string) {
		fmt.Fprintf(b, "| %s |", name)
		for _, r := range results {
			fmt.Fprintf(b, " %s |", cell(r))
		}
		b.WriteString("\n")
	}
	row("Debian's package", func(r *result) string { return r.Version })
	row("Type information (BTF)", func(r *result) string {
		if r.Kernel.BTF {
			return "✓"
		}
		return "–"
	})
	row("The kernel itself is preempted", func(r *result) string {
		if r.Kernel.Preemption == "" {
			return "–"
		}
		return "`" + r.Kernel.Preemption + "`"
	})
	for _, name := range featureNames {
		row("`"+name+"`", func(r *result) string {
			if text := r.unsupported(name); text != "" {
				return "✗ " + text
			}
			return "✓"
		})
	}
	b.WriteString("\n")
}

// unsupported is why the kernel lacks a feature though no capability is missing, as in
// the first trial.
func (r *result) unsupported(name string) string {
	if len(r.Trials) == 0 {
		return "was not tried"
	}
	return r.Trials[0].Features[name].Unsupported
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
	b.WriteString(capabilitiesHead)
	tableHead(b, results)
	reasons := map[string][]string{}
	for _, capability := range []string{"BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE"} {
		fmt.Fprintf(b, "| `%s` |", capability)
		for _, r := range results {
			fmt.Fprintf(b, " %s |", r.needing(capability, reasons))
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
func (r *result) needing(capability string, reasons map[string][]string) string {
	for _, trial := range r.Trials {
		if missingFrom(r.Trials[0].Capabilities, trial.Capabilities) != capability {
			continue
		}
		var failing []string
		for _, name := range featureNames {
			text := trial.Features[name].Unsupported
			if text == "" {
				continue
			}
			failing = append(failing, name)
			if !slices.Contains(reasons[text], capability) {
				reasons[text] = append(reasons[text], capability)
			}
		}
		if len(failing) == len(featureNames) {
			return "all"
		}
		return strings.Join(failing, ", ")
	}
	return "–"
}

// older writes what is known of kernels that cannot be had.
func older(b *strings.Builder) {
	b.WriteString(olderKernels)
	for _, release := range []string{"5.4", "5.8"} {
		for _, name := range []string{kernelfeature.L4Firewall, kernelfeature.ConnectDenied} {
			fmt.Fprintf(b, "- %v\n", l4firewall.TooOld(name, release))
		}
	}
}

// version is the full version of a kernel or package: the one thing in the page that
// changes without anything being different.
var version = regexp.MustCompile(`\b\d+\.\d+\.\d+\S*`)

// agree returns an error where the page does not say what this run has found.
func agree(path string, results []*result) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var fresh strings.Builder
	if err := document(&fresh, results); err != nil {
		return err
	}
	said, found := versionless(string(page)), versionless(fresh.String())
	for i := range max(len(said), len(found)) {
		switch {
		case i >= len(said):
			err = fmt.Errorf("%s ends before %q", path, found[i])
		case i >= len(found):
			err = fmt.Errorf("%s has %q where this run has nothing more", path, said[i])
		case said[i] != found[i]:
			err = fmt.Errorf("line %d of %s is %q; this run has found %q", i+1, path, said[i], found[i])
		default:
			continue
		}
		return errors.Join(err, errors.New("make docs-kernels writes the page anew"))
	}
	return nil
}

func versionless(page string) []string {
	return strings.Split(version.ReplaceAllString(page, "…"), "\n")
}
