// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// allSeries are the kernels that are tested: of each, the newest that there is.
var allSeries = []string{"5.10", "6.1", "6.12", vm.Newest}

// feature is a row of the table: what some tests show together.
type feature struct {
	name  string
	tests []test
	// preemptible: its outcome shows whether the kernel keeps calls from a program
	// that it has preempted.
	preemptible bool
}

// test is one in the package of a job. Where sub is set, only those of its subtests
// count whose last part is that.
type test struct{ job, name, sub string }

// jobs are the folders of the packages whose tests run.
var jobs = map[string]string{
	"syscallcount": "ebpf/syscallcount",
	"l4firewall":   "ebpf/l4firewall",
	"podslots":     "ebpf/podslots",
	"podcgroup":    "internal/podcgroup",
}

// jobOrder is that of the jobs in the machine.
var jobOrder = []string{"podslots", "podcgroup", "syscallcount", "l4firewall"}

func counter(names ...string) []test  { return in("syscallcount", names) }
func firewall(names ...string) []test { return in("l4firewall", names) }

func in(job string, names []string) (list []test) {
	for _, name := range names {
		list = append(list, test{job: job, name: name})
	}
	return list
}

// groups are the parts of the table.
var groups = []struct {
	name     string
	features []feature
}{
	{"Pods and their cgroups", []feature{
		{name: "Cgroups are found as they appear, and their ids", tests: in("podcgroup", []string{"TestTreeFindsPods", "TestTreeTellsReplacement", "TestFindRootHere", "TestID"})},
		{name: "Pods keep their slots", tests: in("podslots", []string{"TestSlots", "TestResize"})},
	}},
	{kernelfeature.SyscallCounter, []feature{
		{name: "Loads, attaches, and leaves nothing when nothing is watched", tests: counter("TestProbe", "TestAttachment")},
		{name: "Exact on all CPUs, read in batches and singly", tests: counter("TestExact")},
		{name: "Exact while a real-time process preempts others", tests: counter("TestPreempted"), preemptible: true},
		{name: "A new container's first call counts (`cgroup_mkdir`)", tests: counter("TestFirstCall", "TestChurn")},
		{name: "Filter by system call", tests: counter("TestFilter")},
		{name: "Counts per process", tests: counter("TestPerPID")},
		{name: "Restart of the agent: nothing lost, nothing twice", tests: counter("TestRestart")},
		{name: "Upgrade with another layout, and the way back", tests: counter("TestLayoutChange")},
		{name: "Killed agents", tests: counter("TestKillUnderLoad")},
		{name: "`Unwatch` zeroes, removed cgroups are forgotten", tests: counter("TestUnwatch", "TestCgroupGone")},
		{name: "More cgroups than there is room for", tests: counter("TestFull")},
		{name: "Without BTF: unsupported, with the reason", tests: counter("TestProbeWithoutBTF")},
	}},
	{kernelfeature.L4Firewall, append(verdicts(),
		feature{name: "Verdicts, parser and reference agree (`BPF_PROG_TEST_RUN`)", tests: firewall("TestParserAgainstReference", "TestLoopbackDevicePasses")},
		feature{name: "Fragments, IPv6 extension headers, ICMP", tests: firewall("TestFragments", "TestExtensionHeaders", "TestEchoPasses")},
		feature{name: "Loopback, other pods, hostNetwork", tests: firewall("TestLoopback", "TestOtherPods", "TestHostNetwork", "TestRepliesToAnotherAddress")},
		feature{name: "Change of rules: established connections and replies live on", tests: firewall("TestHotChange")},
		feature{name: "200 changes of policy under traffic: no gap, no leak", tests: firewall("TestChangesWithoutGap")},
		feature{name: "Upgrade with another layout, and the way back", tests: firewall("TestLayoutChange")},
		feature{name: "Agents come and go under traffic", tests: firewall("TestAdoptionUnderTraffic")},
		feature{name: "Replies end 120 s after the last packet", tests: firewall("TestFlowsAge")},
		feature{name: "Removed cgroups and pods leave no link, pin or count", tests: firewall("TestGoneCgroups", "TestCgroupGoesDuringAdoption", "TestDetach")},
		feature{name: "`" + kernelfeature.ConnectDenied + "`: refused at once", tests: firewall("TestProbe")},
		feature{name: "Where the kernel says that it is too old: unsupported, with the reason", tests: firewall("TestProbeOnAnOldKernel")},
	)},
}

// verdicts are the rows of single ways of traffic: each under every kind of policy.
func verdicts() (list []feature) {
	for _, direction := range []string{"ingress", "egress"} {
		for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
			name := fmt.Sprintf("%s IPv%s %s: allowed, blocked, audited", strings.ToUpper(network[:3]), network[3:], direction)
			list = append(list, feature{name: name, tests: []test{{"l4firewall", "TestTraffic", direction + "_" + network}}})
		}
	}
	return list
}

// plan is what a guest does on a kernel of that release.
func plan(release [2]int) wire.Jobs {
	var todo wire.Jobs
	for _, job := range jobOrder {
		var names []string
		for _, g := range groups {
			for _, f := range g.features {
				for _, t := range f.tests {
					if t.job == job && !slices.Contains(names, t.name) {
						names = append(names, t.name)
					}
				}
			}
		}
		todo.Tests = append(todo.Tests, wire.Job{Name: job, Args: []string{
			"-test.v", "-test.short", "-test.timeout=1h", "-test.run=^(" + strings.Join(names, "|") + ")$",
		}})
	}
	needed := neededCapabilities(release)
	todo.Trials = [][]string{needed}
	for i := range needed {
		todo.Trials = append(todo.Trials, append(append([]string{}, needed[:i]...), needed[i+1:]...))
	}
	return todo
}

// some returns only one job, with its own pattern where only has one (JOB=TESTS); or
// the trials.
func some(todo wire.Jobs, only string) wire.Jobs {
	name, pattern, _ := strings.Cut(only, "=")
	var few wire.Jobs
	if name == "trials" {
		few.Trials = todo.Trials
	}
	for _, job := range todo.Tests {
		if job.Name != name {
			continue
		}
		if pattern != "" {
			job.Args[len(job.Args)-1] = "-test.run=" + pattern
		}
		few.Tests = append(few.Tests, job)
	}
	return few
}

// neededCapabilities are those that the agent's container has on such a kernel.
func neededCapabilities(release [2]int) []string {
	before := func(minor int) bool { return release[0] < 5 || release[0] == 5 && release[1] < minor }
	switch {
	case before(8):
		return []string{"SYS_ADMIN", "NET_ADMIN", "SYS_RESOURCE"}
	case before(11):
		return []string{"BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE"}
	}
	return []string{"BPF", "PERFMON", "NET_ADMIN"}
}

// needs tells whether a feature must fail without a capability; where it may, depends
// on the kernel.
func needs(name, capability string) (must, may bool) {
	switch {
	case capability == "":
		return false, false
	case capability == "PERFMON" && name == kernelfeature.ConnectDenied:
		return false, true // Some kernels' verifiers ask for it.
	case capability == "NET_ADMIN":
		must = name != kernelfeature.SyscallCounter
		return must, must
	}
	return true, true
}

// preemptsPrograms tells whether such a kernel is known to preempt programs on
// sys_enter, and to keep calls from them until they go on. Linux 6.18 does not; 7.2 does.
func preemptsPrograms(release [2]int) bool { return release[0] >= 7 }

// skippedByKernel is what the tests of syscallcount log where calls are missing, but
// not more than the kernel itself says that it has kept from the program.
const skippedByKernel = "skipped by the kernel: "

// tested is a test's end, as the testing package prints it.
var tested = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
