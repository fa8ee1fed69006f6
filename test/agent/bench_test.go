// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// BenchmarkMemory is the memory of an agent that serves so many pods with both
// programs and has been scraped, and of its maps in the kernel. The node may run as
// many pods as there are. -benchtime does not matter.
func BenchmarkMemory(b *testing.B) {
	for _, pods := range []int{250, 1000} {
		b.Run(strconv.Itoa(pods), func(b *testing.B) {
			w := newWorld(b, shared, pods)
			config := w.config("c", v1alpha1.EBPFConfig{
				SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true},
				L4Firewall:        blocking(81),
				MetricsExport:     exported(),
			})
			w.start()
			for i := range pods {
				w.pod(fmt.Sprint("p", i), sandbox.PodOptions{NoNetwork: true})
			}
			all := int32(pods)
			w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: config.Generation, Desired: all, Attached: all})
			for range 3 {
				if w.scrape() == nil {
					b.Fatal("the agent's metrics could not be read")
				}
			}
			for b.Loop() { // nothing: the figures are the metrics
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(status(b, w.agent.PID(), "VmRSS:")/1024, "agent-MiB")
			b.ReportMetric(status(b, w.agent.PID(), "VmHWM:")/1024, "agent-peak-MiB")
			b.ReportMetric(float64(kernelMemory(b, w.pinned().maps))/(1<<20), "kernel-MiB")
		})
	}
}

// status reads a value, in KiB, of a process's status.
func status(b *testing.B, pid int, name string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			value, err := strconv.ParseFloat(fields[1], 64)
			must(b, err)
			return value
		}
	}
	b.Fatalf("process %d has no %s", pid, name)
	return 0
}

// kernelMemory is what the kernel locks for the maps, in bytes.
func kernelMemory(b *testing.B, ids []ebpf.MapID) (sum uint64) {
	b.Helper()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		must(b, err)
		info, err := m.Info()
		must(b, err)
		size, ok := info.Memlock()
		if !ok {
			b.Fatalf("the kernel does not tell the memory of map %d", id)
		}
		sum += size
		must(b, m.Close())
	}
	return sum
}
