// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
)

// newConfig compiles a config for the pods of an app (all, if empty).
func newConfig(name, app string, e *v1alpha1.EBPFConfig) *Config {
	pcmc := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: 3}}
	pcmc.Spec.EBPFConfig = e
	if app != "" {
		pcmc.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": app}}
	}
	return Compile(pcmc)
}

func count(names ...v1alpha1.SyscallName) *v1alpha1.EBPFConfig {
	return &v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true, SyscallNames: names}}
}

func TestResolve(t *testing.T) {
	pod := &Pod{Namespace: "shop", Name: "p", Labels: map[string]string{"app": "web"}}
	over := &Pod{Namespace: "shop", Name: "p", Labels: pod.Labels, Over: true}
	perPID := count("read")
	perPID.SyscallMonitoring.PerPID = true
	wall := func(f v1alpha1.L4Firewall) *v1alpha1.EBPFConfig {
		f.Enabled = true
		return &v1alpha1.EBPFConfig{L4Firewall: &f}
	}
	export := func(interval string) *v1alpha1.EBPFConfig {
		return &v1alpha1.EBPFConfig{MetricsExport: &v1alpha1.MetricsExport{Enabled: true, UpdateInterval: interval}}
	}
	off := &v1alpha1.EBPFConfig{
		SyscallMonitoring: &v1alpha1.SyscallMonitoring{SyscallNames: []v1alpha1.SyscallName{"read"}},
		L4Firewall:        &v1alpha1.L4Firewall{BlockedPorts: []v1alpha1.Port{1}}, MetricsExport: &v1alpha1.MetricsExport{UpdateInterval: "1s"},
	}
	for name, tc := range map[string]struct {
		pod     *Pod
		configs []*Config
		want    wanted
	}{
		"no config":               {pod, nil, wanted{}},
		"a config without eBPF":   {pod, []*Config{newConfig("a", "", nil)}, wanted{}},
		"everything is off":       {pod, []*Config{newConfig("a", "", off)}, wanted{}},
		"the pod does not match":  {pod, []*Config{newConfig("a", "api", count())}, wanted{}},
		"the pod is over":         {over, []*Config{newConfig("a", "web", count())}, wanted{}},
		"the pod is gone":         {nil, []*Config{newConfig("a", "", count())}, wanted{}},
		"all calls":               {pod, []*Config{newConfig("a", "web", count())}, wanted{syscalls: &syscallcount.Settings{}}},
		"by name":                 {pod, []*Config{newConfig("a", "", count("write", "read"))}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{0, 1}}}},
		"open means three":        {pod, []*Config{newConfig("a", "", count("open"))}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{2, 257, 437}}}},
		"accept means two":        {pod, []*Config{newConfig("a", "", count("accept"))}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{43, 288}}}},
		"not of this machine":     {pod, []*Config{newConfig("a", "", count("unknown"))}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{}}}},
		"names are united":        {pod, []*Config{newConfig("a", "", count("read")), newConfig("b", "", count("write", "read"))}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{0, 1}}}},
		"one wants all":           {pod, []*Config{newConfig("a", "", count("read")), newConfig("b", "", count())}, wanted{syscalls: &syscallcount.Settings{}}},
		"one wants processes":     {pod, []*Config{newConfig("a", "", count("read")), newConfig("b", "", perPID)}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{0}, PerPID: true}}},
		"defaults of a firewall":  {pod, []*Config{newConfig("a", "", wall(v1alpha1.L4Firewall{}))}, wanted{rules: []l4firewall.Rules{{Ingress: true}}}},
		"export of nothing":       {pod, []*Config{newConfig("a", "", export("5s"))}, wanted{export: 5 * time.Second}},
		"export by default":       {pod, []*Config{newConfig("a", "", export(""))}, wanted{export: 30 * time.Second}},
		"the shortest interval":   {pod, []*Config{newConfig("a", "", export("5s")), newConfig("b", "", export("2s")), newConfig("c", "", export("9s"))}, wanted{export: 2 * time.Second}},
		"not that of others":      {pod, []*Config{newConfig("a", "", export("5s")), newConfig("b", "api", export("2s"))}, wanted{export: 5 * time.Second}},
		"another one's deletions": {pod, []*Config{newConfig("a", "", count("read")), deleted()}, wanted{syscalls: &syscallcount.Settings{Numbers: []uint16{0}}}},
		"two firewalls": {pod, []*Config{
			newConfig("a", "", wall(v1alpha1.L4Firewall{DefaultAction: "block", AllowedPorts: []v1alpha1.Port{443, 80}, Directions: []v1alpha1.FirewallDirection{"egress"}})),
			newConfig("b", "", wall(v1alpha1.L4Firewall{BlockedPorts: []v1alpha1.Port{22}, Mode: "audit", Directions: []v1alpha1.FirewallDirection{"egress", "ingress"}})),
		}, wanted{rules: []l4firewall.Rules{{Allowed: []uint16{80, 443}, Block: true, Egress: true}, {Blocked: []uint16{22}, Audit: true, Ingress: true, Egress: true}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := newNumbering("amd64").resolve(tc.pod, tc.configs)
			for _, source := range got.sources {
				if source.syscalls == nil && source.firewall == nil || !source.selector.Matches(pod.Labels) {
					t.Errorf("config %q is a source, and wants no program", source.Name)
				}
			}
			if got.any() != (len(got.sources) > 0) {
				t.Errorf("%d sources of %+v", len(got.sources), got)
			}
			got.sources = nil
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("wanted %+v (system calls %+v), should be %+v (%+v)", got, got.syscalls, tc.want, tc.want.syscalls)
			}
		})
	}
}

func deleted() *Config {
	pcmc := &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Name: "z", DeletionTimestamp: &metav1.Time{}}}
	pcmc.Spec.EBPFConfig = count("write")
	return Compile(pcmc)
}

func TestNumbersDependOnTheArchitecture(t *testing.T) {
	if got := newNumbering("arm64").numbers([]string{"open", "openat", "openat2", "read"}); !reflect.DeepEqual(got, []uint16{56, 63, 437}) {
		t.Errorf("arm64 has no open: %v", got)
	}
	if n := len(newNumbering("unknown")); n != 0 {
		t.Errorf("an unknown architecture has %d numbers", n)
	}
}

func TestProbePorts(t *testing.T) {
	http := func(port intstr.IntOrString) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}
	}
	always := corev1.ContainerRestartPolicyAlways
	named := []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}, {Name: "odd", ContainerPort: 70000}}
	for name, tc := range map[string]struct {
		spec corev1.PodSpec
		want []uint16
	}{
		"none": {corev1.PodSpec{Containers: []corev1.Container{{Ports: named}}}, nil},
		"all probes": {corev1.PodSpec{Containers: []corev1.Container{{
			StartupProbe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(3)}}},
			LivenessProbe:  &corev1.Probe{ProbeHandler: http(intstr.FromInt32(2))},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 1}}},
		}}}, []uint16{1, 2, 3}},
		"hooks": {corev1.PodSpec{Containers: []corev1.Container{{Lifecycle: &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(5)}},
			PreStop:   &corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(4)}},
		}}}}, []uint16{4, 5}},
		"a name":              {corev1.PodSpec{Containers: []corev1.Container{{Ports: named, LivenessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromString("web"))}}}}, []uint16{8080}},
		"an unknown name":     {corev1.PodSpec{Containers: []corev1.Container{{LivenessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromString("web"))}}, {Ports: named}}}, nil},
		"no port":             {corev1.PodSpec{Containers: []corev1.Container{{Ports: named, LivenessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromString("odd"))}, ReadinessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromInt32(0))}}}}, nil},
		"each once":           {corev1.PodSpec{Containers: []corev1.Container{{LivenessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromInt32(9))}, ReadinessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromInt32(9))}}}}, []uint16{9}},
		"a sidecar":           {corev1.PodSpec{InitContainers: []corev1.Container{{RestartPolicy: &always, LivenessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromInt32(9))}}}}, []uint16{9}},
		"an init container":   {corev1.PodSpec{InitContainers: []corev1.Container{{LivenessProbe: &corev1.Probe{ProbeHandler: http(intstr.FromInt32(9))}}}}, nil},
		"a command, a signal": {corev1.PodSpec{Containers: []corev1.Container{{LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}}, Lifecycle: &corev1.Lifecycle{}}}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := probePorts(&tc.spec); !slices.Equal(got, tc.want) {
				t.Errorf("ports %v, want %v", got, tc.want)
			}
		})
	}
}

func TestCgroupUID(t *testing.T) {
	const hash = "0123456789abcdef0123456789abcdef"
	yes := true
	mirror := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			UID: "object", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: hash},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Node", Name: "n", Controller: &yes}},
		}}
		p.Spec.NodeName = "n"
		change(p)
		return p
	}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   types.UID
	}{
		"a mirror pod":    {func(*corev1.Pod) {}, hash},
		"no annotation":   {func(p *corev1.Pod) { p.Annotations = nil }, "object"},
		"of no node":      {func(p *corev1.Pod) { p.OwnerReferences = nil }, "object"},
		"of another node": {func(p *corev1.Pod) { p.Spec.NodeName = "m" }, "object"},
		"claims to be any pod": {func(p *corev1.Pod) {
			p.Annotations[corev1.MirrorPodAnnotationKey] = "46c0f7b1-02b7-4eb8-ac70-0c5a77f6ddb4"
		}, "object"},
		"of a controller's kind": {func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "DaemonSet" }, "object"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := NewPod(mirror(tc.change)).UID; got != tc.want {
				t.Errorf("UID %q, want %q", got, tc.want)
			}
		})
	}
}
