// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// BenchmarkCall prints what a getppid costs, in nanoseconds: with no program (none), an
// empty one (floor), and this one outside and inside a watched pod, at several numbers
// of watched pods. Only figures of one run can be compared: all are measured in turns,
// and of each the best twentieth of the turns counts, as the others tell more about what
// else the machine does. -benchtime does not matter.
func BenchmarkCall(b *testing.B) {
	const calls, quiet = 2_000, 0.05
	turns := 201
	if testing.Short() {
		turns = 21
	}
	pods := newPods(b)
	inside := newWorker(b, makeCgroup(b, pods, "pod0", "container"))
	outside := newWorker(b, makeCgroup(b, pods, "outside"))
	var counters []*Counter
	sizes := []int{1, 100, 1000}
	for _, n := range sizes {
		c := counterOf(b, opening(newBPFFS(b), current, 1024))
		for slot := range n {
			watchPod(b, c, uint32(slot), makeCgroup(b, pods, fmt.Sprint("pod", slot)), Settings{})
		}
		// Attached only while it is measured.
		if err := c.detach(); err != nil {
			b.Fatal(err)
		}
		counters = append(counters, c)
	}
	costs := map[string][]float64{}
	measure := func(name string, w *worker) {
		costs[name] = append(costs[name], float64(w.do("time %d", calls))/calls)
	}
	for turn := range turns {
		measure("none", outside)
		floor := attachEmpty(b)
		measure("floor", outside)
		if err := floor.Close(); err != nil {
			b.Fatal(err)
		}
		for i, c := range counters {
			if err := c.attach(); err != nil {
				b.Fatal(err)
			}
			// What comes first after a change of programs may be slower.
			for j := range 2 {
				if (turn+j)%2 == 0 {
					measure(fmt.Sprint("outside-", sizes[i]), outside)
				} else {
					measure(fmt.Sprint("inside-", sizes[i]), inside)
				}
			}
			if err := c.detach(); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() { // nothing: the figures are the metrics
	}
	b.ReportMetric(0, "ns/op")
	floor := quantile(costs["floor"], quiet)
	for name, all := range costs {
		b.ReportMetric(quantile(all, quiet), name+"-ns")
		b.ReportMetric(quantile(all, quiet)-floor, name+"-above-floor-ns")
	}
	b.ReportMetric(quantile(costs["inside-1000"], quiet)/quantile(costs["inside-1"], quiet), "inside-1000/1")
}

func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[int(q*float64(len(values)))]
}

// attachEmpty attaches a program that does nothing.
func attachEmpty(b *testing.B) link.Link {
	b.Helper()
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: empty})
	if err != nil {
		b.Fatal(err)
	}
	if err := empty.Close(); err != nil {
		b.Fatal(err)
	}
	return attached
}

// BenchmarkWatch is the cost of watching one pod of two containers, among others.
func BenchmarkWatch(b *testing.B) {
	const pods = 1000
	root := newPods(b)
	c := counterOf(b, opening(newBPFFS(b), current, 1024))
	for slot := range pods {
		makeCgroup(b, root, fmt.Sprint("pod", slot), "first")
		makeCgroup(b, root, fmt.Sprint("pod", slot), "second")
	}
	watchPod(b, c, pods, root, Settings{Numbers: []uint16{}})
	var took []float64
	all := make([]uint32, pods)
	for b.Loop() {
		b.StopTimer()
		for slot := range all {
			all[slot] = uint32(slot)
		}
		if err := c.Unwatch(all...); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for slot := range uint32(pods) {
			began := time.Now()
			watchPod(b, c, slot, filepath.Join(root, fmt.Sprint("pod", slot)), Settings{})
			took = append(took, float64(time.Since(began).Nanoseconds())/1000)
		}
	}
	b.ReportMetric(quantile(took, 0.5), "median-µs/pod")
	b.ReportMetric(quantile(took, 0.99), "p99-µs/pod")
}

// BenchmarkRead is the CPU time of reading 1,000 pods with 350 system calls each.
func BenchmarkRead(b *testing.B) {
	const pods, syscalls = 1000, 350
	c := counterOf(b, opening(newBPFFS(b), current, 1024))
	root := newPods(b)
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		b.Fatal(err)
	}
	rows := make([]row, cpus)
	for cpu := range rows {
		for number := range syscalls {
			rows[cpu].Calls[number] = uint64(number + 1)
		}
	}
	for slot := range uint32(pods) {
		watchPod(b, c, slot, makeCgroup(b, root, fmt.Sprint("pod", slot)), Settings{})
		if err := c.rows().Put(slot, rows); err != nil {
			b.Fatal(err)
		}
	}
	for name, single := range map[string]bool{"batch": false, "single": true} {
		b.Run(name, func(b *testing.B) {
			var before, after unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				c.buffer.single = single
				nonzero := 0
				err := c.Read(func(_ uint32, counts *[Numbers]uint64) {
					for _, n := range counts {
						if n != 0 {
							nonzero++
						}
					}
				})
				if err != nil || nonzero < pods*syscalls {
					b.Fatalf("%d series (%v)", nonzero, err)
				}
			}
			if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
				b.Fatal(err)
			}
			cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}
