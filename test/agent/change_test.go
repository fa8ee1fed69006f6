// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

// TestConfigsCompose follows two configs of one pod as they come, change and go.
func TestConfigsCompose(t *testing.T) {
	skipShort(t)
	t.Parallel()
	w := newWorld(t, shared, 20)
	p := w.pod("p", sandbox.PodOptions{}, func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "health", ContainerPort: 8086}}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("health")}}}
	})
	server, from := p.Peer(), w.node.Peer()
	for _, port := range []int{80, 81, 82, 8086} {
		_, err := server.Listen("tcp", p.at(port))
		must(t, err)
	}
	expect := func(what string, passes map[int]bool) {
		t.Helper()
		for port, pass := range passes {
			if err := from.Dial("tcp", p.at(port), map[bool]time.Duration{true: patience, false: dialTime}[pass]); (err == nil) != pass {
				t.Errorf("%s: port %d: %v, want it to pass: %t", what, port, err, pass)
			}
		}
	}
	one := w.config("one", v1alpha1.EBPFConfig{L4Firewall: blocking(81)})
	w.start()
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "one", Generation: 1, Desired: 1, Attached: 1})
	expect("81 is blocked", map[int]bool{80: true, 81: false, 82: true, 8086: true})

	two := w.config("two", v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{
		Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock, AllowedPorts: []v1alpha1.Port{80, 81}}})
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "two", Generation: 1, Desired: 1, Attached: 1})
	expect("all but 80 are blocked", map[int]bool{80: true, 81: false, 82: false, 8086: true})

	w.edit(one, func(e *v1alpha1.EBPFConfig) {
		e.L4Firewall.Mode = v1alpha1.FirewallModeAudit
		e.MetricsExport = exported()
	})
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "one", Generation: 2, Desired: 1, Attached: 1})
	before := w.firewall(p)
	expect("81 is audited", map[int]bool{80: true, 81: true, 82: false, 8086: true})
	w.eventually("the audit is counted", func() error {
		if got := w.firewall(p); got["would_block"] != before["would_block"]+1 {
			return fmt.Errorf("%v, before %v", got, before)
		}
		return nil
	})

	must(t, w.cluster.Client.Delete(t.Context(), two))
	w.eventually("config two is not reported on", func() error {
		n, err := w.report()
		if err == nil && len(n.Status.Configs) != 1 {
			err = fmt.Errorf("%+v", n.Status.Configs)
		}
		return err
	})
	expect("config two is gone", map[int]bool{80: true, 81: true, 82: true, 8086: true})
	must(t, w.cluster.Client.Delete(t.Context(), one))
	w.eventually("nothing is attached", func() error {
		if used, _ := w.value("ebpf_slots_used", nil); used != 0 {
			return fmt.Errorf("%v slots are used", used)
		}
		return nil
	})
	if n := len(w.series("ebpf_l4_firewall_total", nil)); n != 0 {
		t.Errorf("%d series are left", n)
	}
}

// TestAllPodsChangeTogether gives many pods new rules at once.
func TestAllPodsChangeTogether(t *testing.T) {
	skipShort(t)
	const crowd = 100
	w := newWorld(t, shared, crowd)
	for i := range crowd {
		w.pod(fmt.Sprintf("p%d", i), sandbox.PodOptions{NoNetwork: true})
	}
	c := w.config("c", v1alpha1.EBPFConfig{L4Firewall: blocking(81)})
	w.start()
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 1, Desired: crowd, Attached: crowd})
	w.edit(c, func(e *v1alpha1.EBPFConfig) { e.L4Firewall.BlockedPorts = []v1alpha1.Port{82} })
	w.awaitReport(v1alpha1.EBPFNodeConfig{Name: "c", Generation: 2, Desired: crowd, Attached: crowd})
}

// TestPodsOfAllKinds looks at pods that are not like the others.
func TestPodsOfAllKinds(t *testing.T) {
	skipShort(t)
	w := newWorld(t, shared, 20)
	w.config("c", v1alpha1.EBPFConfig{L4Firewall: blocking(81), SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}, MetricsExport: exported()})
	w.start()
	const both = 2
	programs := func(name string) int {
		return len(w.series("ebpf_attached_programs", map[string]string{"pod_name": name}))
	}
	is := func(name string, want int) {
		t.Helper()
		w.eventually(fmt.Sprintf("pod %s has %d programs", name, want), func() error {
			if got := programs(name); got != want {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
	}
	t.Run("hostNetwork", func(*testing.T) {
		p := w.pod("host", sandbox.PodOptions{HostNetwork: true, QoS: corev1.PodQOSBestEffort})
		is("host", both)
		p.Remove()
		is("host", 0)
	})
	for _, driver := range []sandbox.Driver{sandbox.Cgroupfs, sandbox.Systemd} {
		for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
			t.Run(fmt.Sprintf("%s, %s", driver, qos), func(*testing.T) {
				name := strings.ToLower(fmt.Sprintf("%s-%s", driver, qos))
				p := w.pod(name, sandbox.PodOptions{Driver: driver, QoS: qos})
				is(name, both)
				p.Remove()
				is(name, 0)
			})
		}
	}
	t.Run("static", func(t *testing.T) {
		const hash = "0123456789abcdef0123456789abcdef"
		node := &corev1.Node{}
		must(t, w.cluster.Client.Get(t.Context(), client.ObjectKey{Name: w.name}, node))
		yes := true
		w.pod("static", sandbox.PodOptions{UID: hash}, func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: hash}
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: w.name, UID: node.UID, Controller: &yes}}
		})
		is("static", both)
	})
	t.Run("its cgroup appears late", func(*testing.T) {
		p := w.bind("late", sandbox.PodOptions{QoS: corev1.PodQOSBurstable, Driver: sandbox.Systemd})
		time.Sleep(200 * time.Millisecond)
		if n := programs("late"); n != 0 {
			t.Errorf("%d programs without a cgroup", n)
		}
		p.MakeCgroup()
		is("late", both)
	})
	t.Run("it finishes, while its cgroup stays", func(*testing.T) {
		p := w.pod("done", sandbox.PodOptions{})
		is("done", both)
		w.setPhase(p, corev1.PodSucceeded)
		is("done", 0)
	})
	t.Run("it matches no more, and again", func(t *testing.T) {
		p := w.pod("label", sandbox.PodOptions{})
		is("label", both)
		p.object.Labels["app"] = "other"
		must(t, w.cluster.Client.Update(t.Context(), p.object))
		is("label", 0)
		p.object.Labels["app"] = "web"
		must(t, w.cluster.Client.Update(t.Context(), p.object))
		is("label", both)
	})
	t.Run("its cgroup is made anew", func(*testing.T) {
		p := w.pod("anew", sandbox.PodOptions{})
		is("anew", both)
		p.RemoveCgroup()
		is("anew", 0)
		p.MakeCgroup()
		is("anew", both)
	})
	t.Run("another pod takes its name", func(*testing.T) {
		first := w.pod("name", sandbox.PodOptions{})
		is("name", both)
		w.delete(first)
		w.pod("name", sandbox.PodOptions{})
		first.Remove()
		is("name", both)
	})
}
