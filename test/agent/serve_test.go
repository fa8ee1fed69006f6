// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const dialTime = 300 * time.Millisecond

// expectDial checks whether a connection passes.
func expectDial(t testing.TB, from *sandbox.Peer, network, to string, passes bool) {
	t.Helper()
	timeout := dialTime
	if passes {
		timeout = patience
	}
	if err := from.Dial(network, to, timeout); (err == nil) != passes {
		t.Errorf("%s to %s: %v, want it to pass: %t", network, to, err, passes)
	}
}

func TestServes(t *testing.T) {
	skipShort(t)
	t.Parallel()
	w := newWorld(t, shared, 20)
	config := w.config("c", v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{"getppid", "open"}},
		L4Firewall:        blocking(81),
		MetricsExport:     exported(),
	})
	early := w.pod("early", sandbox.PodOptions{})
	w.start()
	late := w.pod("late", sandbox.PodOptions{Driver: sandbox.Systemd, QoS: corev1.PodQOSBurstable})
	other := w.pod("other", sandbox.PodOptions{}, func(p *corev1.Pod) { p.Labels = nil })
	for _, p := range []*pod{early, late} {
		w.attached(p, "l4_firewall", "syscall_counter")
	}
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: config.Generation, Desired: 2, Attached: 2})

	client := w.node.Peer()
	for _, p := range []*pod{early, late, other} {
		server := p.Peer()
		for _, port := range []int{80, 81} {
			if _, err := server.Listen("tcp", p.at(port)); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			expectDial(t, client, "tcp", p.at(80), true)
		}
		expectDial(t, client, "tcp", p.at(81), p == other)
		if err := server.Calls(-1, 1234); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*pod{early, late} {
		w.eventually("the metrics of "+p.object.Name, func() error {
			got := w.firewall(p)
			if got["allowed"] != 3 || got["blocked"] != 1 || got["would_block"] != 0 || got["udp_packets"] != 0 || got["tcp_packets"] == 0 {
				return fmt.Errorf("firewall %v", got)
			}
			if calls := w.calls(p, "getppid"); calls != 1234 {
				return fmt.Errorf("getppid %d", calls)
			}
			return nil
		})
		if value, found := w.value("ebpf_syscall_count_total", map[string]string{"pod_name": p.object.Name, "syscall": "read"}); found {
			t.Errorf("read was not asked for, and was counted %v times", value)
		}
	}
	if got := w.firewall(other); len(got) > 0 {
		t.Errorf("a pod without a config has %v", got)
	}
	w.checkReport(t)
	w.checkEnd(early, late)
}

// checkReport checks what the report says of the node.
func (w *world) checkReport(t *testing.T) {
	t.Helper()
	n, err := w.report()
	must(t, err)
	if len(n.OwnerReferences) != 1 || n.OwnerReferences[0].Kind != "Node" || n.OwnerReferences[0].Name != w.name || n.OwnerReferences[0].UID == "" {
		t.Errorf("owners %+v", n.OwnerReferences)
	}
	s := n.Status
	if s.AttachedPods != 2 || s.KernelVersion == "" || s.Architecture == "" || s.CgroupVersion == "" || !s.BTF {
		t.Errorf("status %+v", s)
	}
	for _, f := range s.Features {
		if !f.Supported || f.Reason != "" {
			t.Errorf("feature %+v", f)
		}
	}
	if ready := w.condition(v1alpha1.ConditionReady); len(s.Features) != 3 || ready == nil || ready.Reason != v1alpha1.ReasonServing {
		t.Errorf("features %v, Ready %+v", s.Features, ready)
	}
}

// checkEnd lets one pod end by its cgroup, one by its deletion by force.
func (w *world) checkEnd(first, second *pod) {
	w.t.Helper()
	first.Remove()
	w.delete(first)
	w.delete(second) // its processes still run
	for _, p := range []*pod{first, second} {
		w.eventually("the series of "+p.object.Name+" end", func() error {
			for _, metric := range []string{"ebpf_syscall_count_total", "ebpf_l4_firewall_total", "ebpf_attached_programs"} {
				if n := len(w.series(metric, map[string]string{"pod_name": p.object.Name})); n > 0 {
					return fmt.Errorf("%s has %d", metric, n)
				}
			}
			return nil
		})
	}
	expectDial(w.t, w.node.Peer(), "tcp", second.at(81), false) // no gap at the end either
	second.Remove()
	w.eventually("the slots are free", func() error {
		if used, _ := w.value("ebpf_slots_used", nil); used != 0 {
			return fmt.Errorf("%v are used", used)
		}
		return nil
	})
}

func TestEgressIsDeniedAtOnce(t *testing.T) {
	skipShort(t)
	w := newWorld(t, shared, 20)
	w.config("c", v1alpha1.EBPFConfig{
		L4Firewall:    &v1alpha1.L4Firewall{Enabled: true, BlockedPorts: []v1alpha1.Port{81}, Directions: []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionEgress}},
		MetricsExport: exported(),
	})
	p := w.pod("p", sandbox.PodOptions{})
	w.start()
	w.attached(p, "l4_firewall")
	if err := p.Peer().Dial("tcp", fmt.Sprintf("%s:81", w.node.Addresses()[0]), patience); !errors.Is(err, syscall.EPERM) {
		t.Errorf("the denied connection: %v", err)
	}
	w.eventually("it is counted", func() error {
		if got := w.firewall(p); got["blocked"] != 1 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}
