// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// shippedCapabilities are those of the DaemonSet.
var shippedCapabilities = []string{"bpf", "net_admin", "perfmon"}

// with has the agent run with no other capabilities, as UID 0 in a container.
func (w *world) with(capabilities ...string) {
	keep := ""
	for _, c := range capabilities {
		keep += ",+" + c
	}
	w.launcher = []string{"setpriv", "--inh-caps=-all", "--bounding-set=-all" + keep}
}

// supported are the features that the report names as such; the reasons are of
// the others.
func (w *world) supported() (names []string, reasons map[string]string) {
	w.t.Helper()
	reasons = map[string]string{}
	w.eventually("the report", func() error {
		n, err := w.report()
		if err != nil {
			return err
		}
		if len(n.Status.Features) == 0 {
			return fmt.Errorf("%+v", n.Status)
		}
		for _, f := range n.Status.Features {
			if f.Supported {
				names = append(names, string(f.Name))
			} else {
				reasons[string(f.Name)] = f.Reason
			}
		}
		return nil
	})
	return names, reasons
}

// TestCapabilities takes one capability at a time from the agent: what is left
// has to work, and what does not is told.
func TestCapabilities(t *testing.T) {
	skipShort(t)
	for name, tc := range map[string]struct {
		capabilities []string
		works        string // the features
		attached     int
	}{
		"all that are shipped": {shippedCapabilities, "[SyscallCounter L4Firewall ConnectDenied]", 2},
		"the legacy ones":      {[]string{"sys_admin", "net_admin", "sys_resource"}, "[SyscallCounter L4Firewall ConnectDenied]", 2},
		"no NET_ADMIN":         {[]string{"bpf", "perfmon"}, "[SyscallCounter]", 1},
		"no PERFMON":           {[]string{"bpf", "net_admin"}, "[]", 0},
		"no BPF":               {[]string{"net_admin", "perfmon"}, "[]", 0},
		"none":                 {nil, "[]", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, shared, 20)
			w.with(tc.capabilities...)
			w.config("c", everything())
			p := w.pod("p", sandbox.PodOptions{})
			w.start()
			works, reasons := w.supported()
			if got := fmt.Sprint(works); got != tc.works {
				t.Errorf("works: %s, want %s; reasons: %q", got, tc.works, reasons)
			}
			delete(reasons, "ConnectDenied") // it says no more than that the firewall lacks
			w.checkUnsupported(reasons, "apabilit")
			w.eventually("what works is attached", func() error {
				if n := len(w.series("ebpf_attached_programs", map[string]string{"pod_name": p.object.Name})); n != tc.attached {
					return fmt.Errorf("%d programs, want %d", n, tc.attached)
				}
				return nil
			})
			want := v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Attached: 1}
			if tc.attached < 2 {
				want.Attached, want.Unsupported = 0, 1
			}
			w.awaitReport(want)
		})
	}
}

// checkUnsupported checks that features that do not work are told in every way,
// with a text that every reason has.
func (w *world) checkUnsupported(reasons map[string]string, text string) {
	w.t.Helper()
	for feature, reason := range reasons {
		if !strings.Contains(reason, text) {
			w.t.Errorf("%s: %q, want %q in it", feature, reason, text)
		}
		w.awaitEvent(operators, w.name, "FeatureUnsupported", feature)
		if value, found := w.value("ebpf_feature_supported", map[string]string{"feature": feature}); !found || value != 0 {
			w.t.Errorf("the metric of %s: %v, found %t", feature, value, found)
		}
	}
	ready := w.condition(v1alpha1.ConditionReady)
	if ready == nil || (ready.Reason == v1alpha1.ReasonDegraded) != (len(reasons) > 0) {
		w.t.Errorf("Ready is %+v, %d features lack", ready, len(reasons))
	}
}

// TestNodesThatLackWhatEverythingStandsOn runs the agent where it can do nothing:
// it says why, and does not end.
func TestNodesThatLackWhatEverythingStandsOn(t *testing.T) {
	skipShort(t)
	for name, tc := range map[string]struct {
		environ func(w *world) map[string]string
		reason  string
	}{
		"no BPF file system": {func(*world) map[string]string {
			return map[string]string{"BPFFS_ROOT": t.TempDir() + "/podconfigmap/operators"}
		}, "not in a BPF file system"},
		"a directory that cannot be made": {func(*world) map[string]string {
			return map[string]string{"BPFFS_ROOT": "/proc/podconfigmap"}
		}, "mount a BPF file system"},
		"no cgroup v2": {func(*world) map[string]string {
			return map[string]string{"CGROUP_ROOT": t.TempDir()}
		}, "not in a cgroup v2 hierarchy"},
		"no such cgroup root": {func(*world) map[string]string {
			return map[string]string{"CGROUP_ROOT": "/nowhere"}
		}, "no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, shared, 20)
			w.config("c", everything())
			w.pod("p", sandbox.PodOptions{})
			environ := tc.environ(w)
			w.begin(environ)
			must(t, w.agent.WaitReady(t.Context()))
			works, reasons := w.supported()
			if len(works) > 0 || len(reasons) != 3 {
				t.Errorf("works: %v; reasons: %q", works, reasons)
			}
			w.checkUnsupported(reasons, tc.reason)
			message := w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Unsupported: 1})
			if !strings.Contains(message, "SyscallCounter is not supported") || !strings.Contains(message, "L4Firewall is not supported") {
				t.Errorf("the config's message: %q", message)
			}
			w.stop()
			if dir := environ["BPFFS_ROOT"]; dir != "" {
				if _, err := os.Stat(dir); err == nil {
					t.Errorf("%s was left behind", dir)
				}
			}
		})
	}
}

// TestMended runs the agent where it can do nothing, or not all, until that is
// mended: then it serves, without that anybody would restart it.
func TestMended(t *testing.T) {
	skipShort(t)
	for name, tc := range map[string]struct {
		harm   func(w *world) (mend func())
		lacks  int
		reason string
	}{
		"no BPF file system": {func(w *world) func() {
			dir := w.t.TempDir()
			w.environ["BPFFS_ROOT"] = dir + "/pins"
			return func() {
				must(w.t, unix.Mount("bpf", dir, "bpf", 0, ""))
				w.t.Cleanup(func() { must(w.t, unix.Unmount(dir, unix.MNT_DETACH)) })
			}
		}, 3, "not in a BPF file system"},
		"a map that is none of the firewall's": {func(w *world) func() {
			path := w.pins() + "/l4firewall/storage_ingress"
			must(w.t, os.MkdirAll(filepath.Dir(path), 0o700))
			strange, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			must(t, err)
			must(t, errors.Join(strange.Pin(path), strange.Close()))
			return func() { must(w.t, os.Remove(path)) }
		}, 2, "the agent tries again every CONTROLLER_RESYNC_PERIOD"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, shared, 20)
			mend := tc.harm(w)
			w.environ["CONTROLLER_RESYNC_PERIOD"] = "1s"
			w.config("c", everything())
			p := w.pod("p", sandbox.PodOptions{NoNetwork: true})
			w.start()
			_, reasons := w.supported()
			if len(reasons) != tc.lacks || !strings.Contains(reasons["L4Firewall"], tc.reason) {
				t.Errorf("reasons: %q", reasons)
			}
			w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Unsupported: 1})
			process := w.agent.PID()
			mend()
			w.attached(p, "l4_firewall", "syscall_counter")
			w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Attached: 1})
			if ready := w.condition(v1alpha1.ConditionReady); ready == nil || ready.Status != metav1.ConditionTrue {
				t.Errorf("Ready is %+v", ready)
			}
			if w.agent.PID() != process || strings.Count(w.agent.Log(), "Beginning anew") != 1 {
				t.Errorf("it began anew %d times", strings.Count(w.agent.Log(), "Beginning anew"))
			}
		})
	}
}

// TestMorePodsThanSlots has pods wait for others to end.
func TestMorePodsThanSlots(t *testing.T) {
	skipShort(t)
	t.Parallel()
	const slots, pods = 5, 7 // a node for 4 pods
	w := newWorld(t, shared, 4)
	w.config("c", everything())
	var all []*pod
	for i := range pods {
		all = append(all, w.pod(fmt.Sprintf("p%d", i), sandbox.PodOptions{NoNetwork: true}))
	}
	w.start()
	message := w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: pods, Attached: slots, Failed: pods - slots})
	if !strings.Contains(message, "all 5 slots for pods are taken") {
		t.Errorf("the message: %q", message)
	}
	if total, _ := w.value("ebpf_slots", nil); total != slots {
		t.Errorf("%v slots", total)
	}
	served := func(p *pod) bool {
		return len(w.series("ebpf_attached_programs", map[string]string{"pod_name": p.object.Name})) == 2
	}
	var waiting, working []*pod
	for _, p := range all {
		if served(p) {
			working = append(working, p)
			continue
		}
		waiting = append(waiting, p)
		w.awaitEvent(w.name, p.object.Name, "EBPFAttachFailed", "slots for pods are taken")
		for _, program := range []string{"l4_firewall", "syscall_counter"} {
			if n, _ := w.value("ebpf_program_errors_total", map[string]string{"pod_name": p.object.Name, "program_type": program, "error_type": "no_slot"}); n == 0 {
				t.Errorf("no failure of %s is counted for %s", program, p.object.Name)
			}
		}
	}
	for i, p := range waiting {
		working[i].Remove()
		w.delete(working[i])
		w.eventually("a pod that waited is served", func() error {
			for _, one := range waiting {
				if served(one) {
					return nil
				}
			}
			return fmt.Errorf("%s still waits", p.object.Name)
		})
	}
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: slots, Attached: slots})
}

// TestRunningWithoutCgroup tells of a pod whose cgroup cannot be found.
func TestRunningWithoutCgroup(t *testing.T) {
	skipShort(t)
	t.Parallel()
	w := newWorld(t, shared, 20)
	w.config("c", everything())
	p := w.bind("p", sandbox.PodOptions{NoNetwork: true})
	w.setPhase(p, corev1.PodRunning)
	w.start()
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1})
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Failed: 1})
	w.awaitEvent(w.name, "p", "EBPFAttachFailed", "has no cgroup")
	p.MakeCgroup()
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: 1, Attached: 1})
}

// TestPerPID asks for counts of each process.
func TestPerPID(t *testing.T) {
	skipShort(t)
	w := newWorld(t, shared, 20)
	e := everything()
	e.SyscallMonitoring.PerPID = true
	c := w.config("c", e)
	p := w.pod("p", sandbox.PodOptions{NoNetwork: true})
	w.start()
	w.attached(p, "syscall_counter")
	one, two := p.Peer(), p.Peer()
	must(t, one.Calls(-1, 300))
	must(t, two.Calls(-1, 400))
	of := func(pid int) uint64 {
		value, _ := w.value("ebpf_syscall_count_total", map[string]string{"pod_name": "p", "syscall": "getppid", "pid": fmt.Sprint(pid)})
		return uint64(value)
	}
	w.eventually("each process is counted", func() error {
		if a, b, all := of(one.PID()), of(two.PID()), w.calls(p, "getppid"); a != 300 || b != 400 || all != 700 {
			return fmt.Errorf("%d, %d, %d in all", a, b, all)
		}
		return nil
	})
	w.edit(c, func(e *v1alpha1.EBPFConfig) { e.SyscallMonitoring.PerPID = false })
	w.eventually("only totals are left", func() error {
		if n, all := len(w.series("ebpf_syscall_count_total", map[string]string{"pod_name": "p"})), w.calls(p, "getppid"); n != 1 || all != 700 {
			return fmt.Errorf("%d series, %d calls", n, all)
		}
		return nil
	})
}
