// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// TestWithoutBTF runs the agent where the kernel shows no type information: system
// calls cannot be counted, the firewall works.
func TestWithoutBTF(t *testing.T) {
	skipShort(t)
	w := newWorld(t, shared, 20)
	w.launcher = []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /sys/kernel/btf && exec "$@"`, "sh"}
	w.config("both", everything())
	w.config("wall", v1alpha1.EBPFConfig{L4Firewall: blocking(81)})
	p := w.pod("p", sandbox.PodOptions{})
	w.start()
	works, reasons := w.supported()
	if fmt.Sprint(works) != "[L4Firewall ConnectDenied]" {
		t.Errorf("works: %v; reasons: %q", works, reasons)
	}
	w.checkUnsupported(reasons, "no type information (BTF)")
	if n, err := w.report(); err != nil || n.Status.BTF {
		t.Errorf("the report says BTF %t (%v)", n.Status.BTF, err)
	}
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "wall", Generation: 1, Desired: 1, Attached: 1})
	message := w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "both", Generation: 1, Desired: 1, Unsupported: 1})
	if !strings.Contains(message, "SyscallCounter is not supported") {
		t.Errorf("the message of the config that asks for both: %q", message)
	}
	server, client := p.Peer(), w.node.Peer()
	for port, passes := range map[int]bool{80: true, 81: false} {
		_, err := server.Listen("tcp", p.at(port))
		must(t, err)
		expectDial(t, client, "tcp", p.at(port), passes)
	}
}

// cgroupTable opens the table of the cgroups of watched pods.
func (w *world) cgroupTable() *ebpf.Map {
	w.t.Helper()
	names := w.pinNames()
	i := slices.IndexFunc(names, func(name string) bool { return filepath.Base(name) == "cgroup_slots" })
	if i < 0 {
		w.t.Fatalf("no table of cgroups among %v", names)
	}
	table, err := ebpf.LoadPinnedMap(filepath.Join(w.pins(), names[i]), nil)
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, table.Close()) })
	return table
}

// TestTableOfCgroupsFull has more cgroups than the kernel's table of them: a pod
// that finds no room in it is told of, its firewall and all other pods work.
func TestTableOfCgroupsFull(t *testing.T) {
	skipShort(t)
	const room = 16384
	w := newWorld(t, shared, 20)
	w.config("c", everything())
	first := w.pod("first", sandbox.PodOptions{})
	worker := first.Peer()
	w.start()
	w.attached(first, "l4_firewall", "syscall_counter")
	table := w.cgroupTable()
	foreign := uint64(1) << 60 // no cgroup has such an id
	taken := uint64(0)
	for table.Put(foreign+taken, uint32(20)) == nil {
		taken++
	}
	if taken == 0 || taken >= room {
		t.Errorf("%d cgroups fit besides those of a pod", taken)
	}
	late := w.pod("late", sandbox.PodOptions{})
	w.attached(late, "l4_firewall")
	message := w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 2, Attached: 1, Failed: 1})
	if !strings.Contains(message, fmt.Sprintf("all %d entries for the cgroups of watched pods are taken", room)) {
		t.Errorf("the message: %q", message)
	}
	w.awaitEvent(w.name, "late", "EBPFAttachFailed", "are taken")
	if n, _ := w.value("ebpf_program_errors_total", map[string]string{"pod_name": "late", "program_type": "syscall_counter", "error_type": "no_space"}); n == 0 {
		t.Error("no failure is counted")
	}
	must(t, worker.Calls(-1, 500))
	w.eventually("the first pod is counted on", func() error {
		if n := w.calls(first, "getppid"); n != 500 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
	expectDial(t, w.node.Peer(), "tcp", late.at(81), false)
	for i := range taken {
		must(t, table.Delete(foreign+i))
	}
	w.attached(late, "syscall_counter")
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 2, Attached: 2})
}

// TestCgroupsThatGoAtOnce has pods' cgroups go while programs are attached to them.
func TestCgroupsThatGoAtOnce(t *testing.T) {
	skipShort(t)
	const crowd = 100
	w := newWorld(t, shared, crowd)
	w.config("c", everything())
	stays := w.pod("stays", sandbox.PodOptions{})
	worker := stays.Peer()
	var crowded []*pod
	for i := range crowd {
		crowded = append(crowded, w.bind(fmt.Sprintf("p%d", i), sandbox.PodOptions{NoNetwork: true}))
	}
	w.start()
	w.attached(stays, "l4_firewall", "syscall_counter")
	for _, p := range crowded {
		p.MakeCgroup()
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		p.RemoveCgroup()
	}
	w.eventually("one pod is served", func() error {
		if used, _ := w.value("ebpf_slots_used", nil); used != 1 {
			return fmt.Errorf("%v slots are used", used)
		}
		links, err := os.ReadDir(filepath.Join(w.pins(), "l4firewall", "pods"))
		for _, l := range links {
			if !strings.HasPrefix(l.Name(), string(stays.UID())) {
				return fmt.Errorf("link %s is left", l.Name())
			}
		}
		return err
	})
	must(t, worker.Calls(-1, 500))
	w.eventually("it is counted", func() error {
		if n := w.calls(stays, "getppid"); n != 500 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
	expectDial(t, w.node.Peer(), "tcp", stays.at(81), false)
	crowded[0].MakeCgroup()
	w.attached(crowded[0], "l4_firewall", "syscall_counter")
}
