// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// The benchmarks of the eBPF programs stand next to the programs.
func (o *options) ebpfSuites() []suite {
	rounds, trafficRounds := 30, 40
	// Whatever lies in other pages of memory each time it is set up costs a little more
	// or less: more rounds of one set-up would not tell.
	calls, traffic := 3, 5
	memory := suite{folder: "test/agent", names: "^BenchmarkMemory$", whole: true}
	if o.short {
		rounds, trafficRounds, calls, traffic = 3, 3, 1, 1
		memory.names += "/^250$"
	}
	return []suite{
		memory,
		{folder: "ebpf/syscallcount", names: "^Benchmark(Call|Watch|Read)$", anew: calls},
		{folder: "ebpf/l4firewall", names: "^BenchmarkTraffic$", times: trafficRounds, anew: traffic},
		{folder: "ebpf/l4firewall", names: "^Benchmark(Attach|SetPolicies|Read)$", times: rounds},
	}
}

// ebpf measures what the eBPF programs cost the pods of a node, and the agent.
func (o *options) ebpf(ctx context.Context) error {
	if os.Geteuid() != 0 {
		if len(o.only) > 0 {
			return errors.New("measuring ebpf: it needs root")
		}
		say("ebpf is left out: it needs root")
		return nil
	}
	measured := reported{}
	for _, s := range o.ebpfSuites() {
		if err := s.run(ctx, o.short, measured); err != nil {
			return err
		}
	}
	r := ebpfReport{metrics: measured}
	r.calls()
	r.traffic()
	r.life()
	r.memory(o.short)
	if r.err != nil {
		return r.err
	}
	r.print(os.Stdout)
	return r.write(o.ebpfOut)
}

// ebpfReport makes the table of what was measured. Its first error stays.
type ebpfReport struct {
	table
	metrics reported
	err     error
}

// value is what a benchmark must have reported.
func (r *ebpfReport) value(name string) float64 {
	value, err := r.metrics.need(name)
	if r.err == nil {
		r.err = err
	}
	return value
}

// calls tells what one system call costs; all of them were measured in turns.
func (r *ebpfReport) calls() {
	const outsideMore, insideMore = 10, 25 // ns
	value := func(name string) float64 { return r.value("Call " + name + "-ns") }
	floor := value("floor")
	r.add("system call, no program", value("none"), "ns")
	r.add("system call, empty program (floor)", floor, "ns")
	for _, pods := range []string{"1", "100", "1000"} {
		r.compare("system call outside watched pods, pods watched: "+pods, value("outside-"+pods), "ns", floor+outsideMore, "≤ 1 (floor + 10 ns)")
		r.compare("system call inside a watched pod, pods watched: "+pods, value("inside-"+pods), "ns", floor+insideMore, "≤ 1 (floor + 25 ns)")
	}
	for _, where := range []string{"outside", "inside"} {
		r.compare("system call "+where+", 1,000 pods to 1 pod", value(where+"-1000"), "ns", value(where+"-1"), "≤ 1.05")
	}
}

// trafficAims are what the firewall's CPU time is compared with, and the ratio that
// is wanted, if any is.
var trafficAims = []struct{ filter, what, wanted string }{
	{"none", "no filter", ""},
	{"empty", "an empty program", ""},
	{"nftables", "a stateless nftables set", "≤ 1.03"},
	{"nftables-counting", "the same that counts", "≤ 1.03"},
	{"nftables-conntrack", "nftables with conntrack", "≤ 1"},
	{"iptables-256", "iptables with 256 rules", ""},
}

// traffic tells what operations cost both ends together. The ratios are medians of
// those within a round, as the machine's pace changes from one to the next.
func (r *ebpfReport) traffic() {
	for _, o := range []struct{ key, name string }{
		{"tcp-request", "TCP request/response"}, {"tcp-connection", "TCP connect and request"},
		{"udp-request", "UDP request/response"}, {"udp-flow", "UDP flow (socket, request)"},
	} {
		key := "Traffic " + o.key
		for _, aim := range trafficAims {
			ours, theirs := r.value(key+"/ours-ns"), r.value(key+"/"+aim.filter+"-ns")
			r.paired(fmt.Sprintf("%s, to %s", o.name, aim.what), ours, "ns", theirs, r.value(key+"/ours:"+aim.filter), aim.wanted)
		}
	}
}

// life tells what it costs to attach, to change and to read.
func (r *ebpfReport) life() {
	const attach, change, scrape = 100, 50, 20 // µs, ms, ms of CPU
	watch, firewall := r.value("Watch median-µs/pod"), r.value("Attach/ingress median-µs/pod")
	r.compare("count a pod's system calls, median of 1,000", watch, "µs", attach, "≤ 1")
	r.compare("attach the firewall to a pod, ingress, median of 1,000", firewall, "µs", attach, "≤ 1")
	r.compare("attach the firewall to a pod, both directions, median of 1,000", r.value("Attach/both median-µs/pod"), "µs", attach, "≤ 1")
	r.compare("both programs for a pod, sum of medians", watch+firewall, "µs", attach, "")
	r.compare("change 1,000 pods to a new policy", r.value("SetPolicies median-ms"), "ms", change, "≤ 1")
	counts, connections := r.value("Read/batch cpu-ms/op"), r.value("Read cpu-ms/op")
	r.compare("read 350 system calls of 1,000 pods, CPU", counts, "ms", scrape, "≤ 1")
	r.compare("the same and the firewall's counts, CPU", counts+connections, "ms", scrape, "≤ 1")
}

// memory tells what an agent takes whose pods all have both programs.
func (r *ebpfReport) memory(short bool) {
	sizes := []string{"250", "1000"}
	if short {
		sizes = sizes[:1]
	}
	for _, pods := range sizes {
		name := "Memory/" + pods + " "
		r.add("memory of the agent, pods served: "+pods, r.value(name+"agent-MiB"), "MiB")
		r.add("kernel memory of all maps, pods served: "+pods, r.value(name+"kernel-MiB"), "MiB")
	}
	if !short {
		more := r.value("Memory/1000 kernel-MiB") - r.value("Memory/250 kernel-MiB")
		r.add("kernel memory of maps for each further pod", more*1024/(1000-250), "KiB")
	}
}
