// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
)

// features are those that an agent reports.
var features = []v1alpha1.EBPFFeature{v1alpha1.FeatureSyscallCounter, v1alpha1.FeatureL4Firewall, v1alpha1.FeatureConnectDenied}

// legacyLabel is on nodes that get the agent with the rights that old kernels want.
const legacyLabel = "podconfig.example.com/legacy-kernel"

// TestVirtualNode has nodes with kernels of Debian's own join, and does the eBPF checks
// in short on each, beside each other. It has a target of its own: the nodes are
// emulated, and slow.
func TestVirtualNode(t *testing.T) {
	slow := *shared
	slow.patience = 4 * patience
	p := &point{T: t, world: &slow}
	p.namespace(guarded)
	all := []*virtual{{series: "6.1"}, {series: "5.10", legacy: true}}
	p.step("agents, for old kernels, too", func(p *point) {
		p.deploy("--set", "ebpf.enabled=true", "--set", "ebpf.agent.legacyKernels=true")
		for _, n := range p.Nodes() {
			(&virtual{point: p}).awaitReport(n.Name, true)
		}
	})
	p.step("nodes with kernels of Debian's", func(beside *point) {
		for _, v := range all {
			beside.Run(v.series, func(t *testing.T) {
				t.Parallel()
				v.point = &point{T: t, world: p.world}
				v.join(p)
				v.show()
			})
		}
	})
	p.step("ebpf.enabled=false leaves nothing in their kernels", func(p *point) {
		p.deploy()
		for _, v := range all {
			v.on(p).cleared()
		}
	})
	p.noNamespace(guarded)
}

// virtual is what is shown on one such node.
type virtual struct {
	*point
	series string
	// legacy: the kernel counts maps as locked memory, so that it wants the label and
	// the setting.
	legacy bool
	node   *cluster.Node
}

// on is the same in a step of its own.
func (v *virtual) on(p *point) *virtual {
	other := *v
	other.point = p
	return &other
}

// named is a name of this node's own.
func (v *virtual) named(what string) string {
	return what + "-" + strings.ReplaceAll(v.series, ".", "-")
}

// join starts the node, and waits until its agent reports. It is removed at the end of
// the point that is given, unless something failed: it is looked at then, before the
// cluster is stopped.
func (v *virtual) join(until *point) {
	began := time.Now()
	node, err := v.StartVirtualNode(v.Context(), v.series)
	v.must(err)
	v.node = node
	until.Cleanup(func() {
		if until.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := until.RemoveVirtualNode(ctx, node); err != nil {
			until.Error(err)
		}
	})
	v.awaitReport(node.Name, !v.legacy)
	if v.legacy {
		v.patch(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}, `{"metadata":{"labels":{"`+legacyLabel+`":"true"}}}`)
		v.awaitReport(node.Name, true)
	}
	say("Linux %s: a node joins, and its agent reports (%s)", v.series, time.Since(began).Round(100*time.Millisecond))
}

// show does the checks.
func (v *virtual) show() {
	v.step("Linux "+v.series+": counts of system calls, from the first", func(p *point) { v.on(p).countCalls() })
	v.step("Linux "+v.series+": connections from and to another node", func(p *point) { v.on(p).connect() })
}

// awaitReport waits until a node's agent reports that all features are supported, or
// that none is, with a reason and what to do.
func (v *virtual) awaitReport(name string, supported bool) {
	v.Helper()
	v.await(fmt.Sprintf("the agent of %s reports that it supports all: %t", name, supported), func() error {
		report := &v1alpha1.EBPFNode{}
		if err := v.get(system, name, report); err != nil {
			return err
		}
		return errors.Join(reports(report, supported), v.isOwnKernel(report))
	})
}

func reports(report *v1alpha1.EBPFNode, supported bool) error {
	found := map[v1alpha1.EBPFFeature]v1alpha1.EBPFNodeFeature{}
	for _, f := range report.Status.Features {
		found[f.Name] = f
	}
	for _, name := range features {
		f, there := found[name]
		if !there || f.Supported != supported || !supported && (f.Reason == "") {
			return fmt.Errorf("%s of %s: %+v", name, report.Name, report.Status.Features)
		}
	}
	return nil
}

func (v *virtual) isOwnKernel(report *v1alpha1.EBPFNode) error {
	own := v.node != nil && report.Name == v.node.Name
	if has := strings.HasPrefix(report.Status.KernelVersion, v.series+"."); own && !has {
		return fmt.Errorf("%s reports Linux %s, not %s", report.Name, report.Status.KernelVersion, v.series)
	}
	return nil
}

// slowly is a serving container whose probe has time.
func slowly(args ...string) corev1.Container {
	c := serving(args...)
	c.ReadinessProbe.TimeoutSeconds = 30
	return c
}

// podThere makes a pod on the node.
func (v *virtual) podThere(app string, spec corev1.PodSpec) *corev1.Pod {
	v.Helper()
	spec.Tolerations = []corev1.Toleration{{Key: cluster.VirtualTaint, Operator: corev1.TolerationOpExists}}
	return v.pod(app, app, v.node.Name, spec)
}

// countCalls has an init container and a container make known numbers of calls.
func (v *virtual) countCalls() {
	app := v.named("counted")
	v.config(app, v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: []v1alpha1.SyscallName{callName}}})
	spec := podSpec(slowly(fmt.Sprintf("-calls=%dx2000", callNumber)))
	spec.InitContainers = []corev1.Container{container("first", "calls", strconv.Itoa(callNumber), "1000")}
	pod := v.podThere(app, spec)
	v.awaitReady(pod)
	v.awaitCalls([]*corev1.Pod{pod}, map[string]float64{pod.Name: 3000})
	var made struct{ Count int }
	v.ask(pod, control, "/calls", url.Values{"number": {strconv.Itoa(callNumber)}, "count": {"777"}}, &made)
	v.awaitCalls([]*corev1.Pod{pod}, map[string]float64{pod.Name: 3777})
	v.remove(app, pod)
}

// connect tries the ways between a pod on the node, from which and to which all is blocked
// but a port, and one on another node that nothing is asked for, in both directions; the
// pod's init container has tried before. Its probe is at a port that no config allows.
func (v *virtual) connect() {
	app := v.named("walled")
	v.config(app, v1alpha1.EBPFConfig{L4Firewall: &v1alpha1.L4Firewall{
		Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock, AllowedPorts: []v1alpha1.Port{openPort},
		Directions: []v1alpha1.FirewallDirection{v1alpha1.FirewallDirectionIngress, v1alpha1.FirewallDirectionEgress},
	}})
	const ports = "8080,9090"
	outside := v.pod(v.named("outside"), "outside", v.Nodes()[0].Name, podSpec(slowly("-tcp="+ports, "-udp="+ports)))
	v.awaitReady(outside)
	address := func(port int) string { return net.JoinHostPort(outside.Status.PodIP, strconv.Itoa(port)) }
	spec := podSpec(slowly("-tcp="+ports, "-udp="+ports))
	spec.InitContainers = []corev1.Container{container("first", "dial", "-timeout=60s", address(blockedPort), address(openPort))}
	inside := v.podThere(app, spec)
	v.awaitReady(inside)
	all := append(
		route{what: "into the node", from: outside, to: inside, by: inside, addresses: podIPs(inside)}.ways(openPort, blockedPort),
		route{what: "out of the node", from: inside, to: outside, by: inside, addresses: podIPs(outside)}.ways(openPort, blockedPort)...)
	v.walk(all)
	l := newLedger()
	l.add(all...)
	for i, got := range firstResults(v.point, inside) {
		w := way{what: "init container", from: inside, to: outside, by: inside, network: "tcp", address: got.Address, passes: i == 1}
		if err := w.wrong(&got); err != nil {
			v.Error(err)
		}
		l.add(w)
	}
	l.settle(v.point)
	objects, err := v.node.Objects(v.Context())
	v.must(err)
	if len(objects.Programs) == 0 || len(objects.Maps) == 0 {
		v.Errorf("the kernel of %s has %+v while pods are served", v.node.Name, objects)
	}
	say("  while pods are served its kernel has %d programs, %d maps, %d links", len(objects.Programs), len(objects.Maps), len(objects.Links))
	v.remove(app, inside, outside)
}

// remove deletes a config and pods, and waits until they are gone.
func (v *virtual) remove(config string, pods ...*corev1.Pod) {
	v.Helper()
	v.must(v.client.Delete(v.Context(), &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: guarded, Name: config}}))
	for _, pod := range pods {
		v.must(client.IgnoreNotFound(v.client.Delete(v.Context(), pod)))
	}
	for _, pod := range pods {
		v.await("pod "+pod.Name+" is gone", func() error { return v.gone(guarded, pod.Name, &corev1.Pod{}) })
	}
}

// cleared waits until nothing is left in the node's kernel, which nobody else uses.
func (v *virtual) cleared() {
	v.Helper()
	for _, name := range []string{agents, agents + "-legacy"} {
		v.await("DaemonSet "+name+" is gone", func() error { return v.gone(system, name, &appsv1.DaemonSet{}) })
	}
	v.await("nothing is left in the kernel of "+v.node.Name, func() error {
		objects, err := v.node.Objects(v.Context())
		if err != nil {
			return err
		}
		if n := len(objects.Programs) + len(objects.Maps) + len(objects.Links); n > 0 {
			return fmt.Errorf("there are %+v", objects)
		}
		// The folder that installations share may stay.
		pins, err := v.node.Run(v.Context(), "find", "/sys/fs/bpf", "!", "-type", "d")
		if err == nil && strings.TrimSpace(pins) != "" {
			err = fmt.Errorf("there are the pins %s", pins)
		}
		return err
	})
}
