// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// examplePod has a value in every field that the operator reads.
func examplePod() *corev1.Pod {
	isController := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-0", UID: "pod-uid",
			Labels:      map[string]string{"app": "web", "app.kubernetes.io/name": "shop", "empty": ""},
			Annotations: map[string]string{"deployment.kubernetes.io/revision": "7", "note": "two\nlines"},
			OwnerReferences: []metav1.OwnerReference{
				{Kind: "Other", Name: "no-controller"},
				{Kind: "StatefulSet", Name: "web", Controller: &isController},
			},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "robot",
			InitContainers: []corev1.Container{{Name: "init", Image: "busybox"}},
			Containers:     []corev1.Container{{Name: "main", Image: "nginx:1"}, {Name: "side", Image: "envoy:2"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable,
			PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			HostIP: "192.0.2.1", HostIPs: []corev1.HostIP{{IP: "192.0.2.1"}},
			StartTime: &metav1.Time{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("CET", 3600))},
		},
	}
}

func compiled(spec v1alpha1.PodConfigMapConfigSpec) *Config {
	return Compile(&v1alpha1.PodConfigMapConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "meta", UID: "config-uid", Generation: 3}, Spec: spec,
	})
}

func builtIn(extra map[string]string) map[string]string {
	data := map[string]string{
		"podName": "web-0", "namespace": "shop", "nodeName": "node-1", "phase": "Running", "pcmcName": "meta", "ebpf_enabled": "false",
	}
	maps.Copy(data, extra)
	return data
}

func TestRender(t *testing.T) {
	for name, tc := range map[string]struct {
		spec v1alpha1.PodConfigMapConfigSpec
		want map[string]string
	}{
		"built-in keys": {v1alpha1.PodConfigMapConfigSpec{}, builtIn(nil)},
		"labels and annotations; what the pod lacks is left out": {
			v1alpha1.PodConfigMapConfigSpec{
				LabelsToInclude:      []v1alpha1.MetadataKey{"app", "app.kubernetes.io/name", "empty", "absent"},
				AnnotationsToInclude: []v1alpha1.MetadataKey{"deployment.kubernetes.io/revision", "note", "app"},
			},
			builtIn(map[string]string{
				"label_app": "web", "label_app.kubernetes.io_name": "shop", "label_empty": "",
				"annotation_deployment.kubernetes.io_revision": "7", "annotation_note": "two\nlines",
			}),
		},
		"eBPF, empty": {v1alpha1.PodConfigMapConfigSpec{EBPFConfig: &v1alpha1.EBPFConfig{}}, builtIn(nil)},
		"eBPF, all sections on": {
			v1alpha1.PodConfigMapConfigSpec{EBPFConfig: &v1alpha1.EBPFConfig{
				SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true},
				L4Firewall:        &v1alpha1.L4Firewall{Enabled: true, DefaultAction: v1alpha1.FirewallActionBlock},
				MetricsExport:     &v1alpha1.MetricsExport{Enabled: true},
			}},
			builtIn(map[string]string{
				"ebpf_enabled": "true", "ebpf_syscall_monitoring": "true", "ebpf_l4_firewall": "true",
				"ebpf_l4_firewall_default_action": "block", "ebpf_metrics_export": "true",
			}),
		},
		"eBPF, all sections off": {
			v1alpha1.PodConfigMapConfigSpec{EBPFConfig: &v1alpha1.EBPFConfig{
				SyscallMonitoring: &v1alpha1.SyscallMonitoring{}, L4Firewall: &v1alpha1.L4Firewall{}, MetricsExport: &v1alpha1.MetricsExport{},
			}},
			builtIn(map[string]string{
				"ebpf_syscall_monitoring": "false", "ebpf_l4_firewall": "false",
				"ebpf_l4_firewall_default_action": "allow", "ebpf_metrics_export": "false",
			}),
		},
		"eBPF, syscalls only": {
			v1alpha1.PodConfigMapConfigSpec{EBPFConfig: &v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}}},
			builtIn(map[string]string{"ebpf_enabled": "true", "ebpf_syscall_monitoring": "true"}),
		},
		"eBPF, export alone enables nothing": {
			v1alpha1.PodConfigMapConfigSpec{EBPFConfig: &v1alpha1.EBPFConfig{MetricsExport: &v1alpha1.MetricsExport{Enabled: true}}},
			builtIn(map[string]string{"ebpf_metrics_export": "true"}),
		},
		"templates": {
			v1alpha1.PodConfigMapConfigSpec{ConfigMapDataTemplate: map[string]string{
				"where":  "{{ .podName }} on {{ .nodeName }} in {{ .namespace }}",
				"empty":  "",
				"owner":  `{{ .owner.kind }}/{{ .owner.name }}`,
				"images": `{{ range .containers }}{{ .name }}={{ .image }};{{ end }}`,
			}},
			builtIn(map[string]string{
				"where": "web-0 on node-1 in shop", "empty": "", "owner": "StatefulSet/web", "images": "main=nginx:1;side=envoy:2;",
			}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, failure := compiled(tc.spec).Render(observed.NewPod(examplePod()))
			if failure != nil {
				t.Fatalf("failed: %v", failure)
			}
			if !maps.Equal(got, tc.want) {
				t.Errorf("rendered\n%v, want\n%v", got, tc.want)
			}
			for key := range got {
				if bad := validation.IsConfigMapKey(key); len(bad) > 0 {
					t.Errorf("key %q: %v", key, bad)
				}
			}
		})
	}
}

// TestTemplateData holds the view of a pod to what the package podtemplate
// promises its users.
func TestTemplateData(t *testing.T) {
	bare := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bare", UID: "u"}}
	for expression, want := range map[string][2]string{
		".podName":                    {"web-0", "bare"},
		".namespace":                  {"shop", "shop"},
		".uid":                        {"pod-uid", "u"},
		".nodeName":                   {"node-1", ""},
		".phase":                      {"Running", ""},
		".podIP":                      {"10.0.0.1", ""},
		".hostIP":                     {"192.0.2.1", ""},
		`join "," .podIPs`:            {"10.0.0.1,fd00::1", ""},
		`join "," .hostIPs`:           {"192.0.2.1", ""},
		".serviceAccountName":         {"robot", ""},
		".qosClass":                   {"Burstable", ""},
		".startTime":                  {"2026-01-02T02:04:05Z", ""},
		".pcmcName":                   {"meta", "meta"},
		`get .labels "app"`:           {"web", ""},
		`get .annotations "note"`:     {"two\nlines", ""},
		".owner.kind":                 {"StatefulSet", ""},
		".owner.name":                 {"web", ""},
		"len .containers":             {"2", "0"},
		"(index .containers 0).image": {"nginx:1", "fails"},
		".labels.absent":              {"fails", "fails"},
		".unknown":                    {"fails", "fails"},
	} {
		t.Run(expression, func(t *testing.T) {
			config := compiled(v1alpha1.PodConfigMapConfigSpec{ConfigMapDataTemplate: map[string]string{"k": "{{ " + expression + " }}"}})
			for i, pod := range []*corev1.Pod{examplePod(), bare} {
				got := "fails"
				if data, failure := config.Render(observed.NewPod(pod)); failure == nil {
					got = data["k"]
				}
				if got != want[i] {
					t.Errorf("pod %q: %q, want %q", pod.Name, got, want[i])
				}
			}
		})
	}
}

func TestRenderFails(t *testing.T) {
	big := examplePod()
	big.Annotations = map[string]string{"a": strings.Repeat("a", 200<<10), "b": strings.Repeat("b", 50<<10)}
	six := "{{ range (list 1 2 3 4 5 6) }}{{ $.annotations.a }}{{ end }}"
	for name, tc := range map[string]struct {
		spec v1alpha1.PodConfigMapConfigSpec
		want ledger.Failure
	}{
		"does not parse": {
			v1alpha1.PodConfigMapConfigSpec{ConfigMapDataTemplate: map[string]string{"ok": "x", "zone": "{{ .podName "}},
			ledger.Failure{Reason: v1alpha1.ReasonTemplateInvalid, Message: `spec.configMapDataTemplate: template "zone", line 1: unclosed action`},
		},
		"does not fit the pod": {
			v1alpha1.PodConfigMapConfigSpec{ConfigMapDataTemplate: map[string]string{"zone": "{{ .labels.zone }}"}},
			ledger.Failure{Reason: v1alpha1.ReasonTemplateInvalid, Message: `spec.configMapDataTemplate: template "zone", line 1: at <.labels.zone>: map has no entry for key "zone"; read keys that may be absent with get and default`},
		},
		"one template is too large": {
			v1alpha1.PodConfigMapConfigSpec{ConfigMapDataTemplate: map[string]string{"sum": six}},
			ledger.Failure{Reason: v1alpha1.ReasonTooLarge, Message: `template "sum": its output is larger than the 1048545 bytes left in the ConfigMap; write less; include fewer or smaller values in config "meta"`},
		},
		"the sum is too large, to which each part adds": {
			v1alpha1.PodConfigMapConfigSpec{
				AnnotationsToInclude:  []v1alpha1.MetadataKey{"a", "b"},
				ConfigMapDataTemplate: map[string]string{"sum": "{{ .annotations.a }}{{ .annotations.a }}", "sum2": "{{ .annotations.a }}{{ .annotations.a }}{{ .annotations.b }}"},
			},
			ledger.Failure{Reason: v1alpha1.ReasonTooLarge, Message: `template "sum2": its output is larger than the 382945 bytes left in the ConfigMap; write less; include fewer or smaller values in config "meta"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, failure := compiled(tc.spec).Render(observed.NewPod(big))
			if failure == nil || *failure != tc.want {
				t.Errorf("failure %+v, want %+v", failure, tc.want)
			}
			if data != nil {
				t.Errorf("data of %d keys with a failure", len(data))
			}
		})
	}
}

// TestRenderTooLargeWithoutTemplates needs annotations that the API server
// would refuse (256 KiB in all), which a config can include but once each.
func TestRenderTooLargeWithoutTemplates(t *testing.T) {
	for size, tooLarge := range map[int]bool{maxDataSize - 31: false, maxDataSize - 30: true} {
		pod := examplePod()
		pod.Annotations = map[string]string{"a": strings.Repeat("a", size)}
		_, failure := compiled(v1alpha1.PodConfigMapConfigSpec{AnnotationsToInclude: []v1alpha1.MetadataKey{"a"}}).Render(observed.NewPod(pod))
		if (failure != nil) != tooLarge {
			t.Errorf("%d bytes: failure %v, want one: %t", size, failure, tooLarge)
		}
		want := fmt.Sprintf(`its data have %d bytes, a ConfigMap holds 1048576; include fewer or smaller values in config "meta"`, maxDataSize+1)
		if failure != nil && failure.Message != want {
			t.Errorf("message %q, want %q", failure.Message, want)
		}
	}
}

func TestCompile(t *testing.T) {
	c := compiled(v1alpha1.PodConfigMapConfigSpec{
		PodSelector: &v1alpha1.PodSelector{
			MatchLabels:      map[string]string{"app": "web"},
			MatchExpressions: []v1alpha1.PodSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"db"}}},
		},
	})
	if c.Problem != nil || c.Key().String() != "shop/meta" || c.UID != "config-uid" || c.Generation != 3 {
		t.Errorf("compiled to %+v", c)
	}
	for name, tc := range map[string]struct {
		labels map[string]string
		want   bool
	}{
		"both hold":             {map[string]string{"app": "web", "tier": "front"}, true},
		"the key may be absent": {map[string]string{"app": "web"}, true},
		"expression fails":      {map[string]string{"app": "web", "tier": "db"}, false},
		"label differs":         {map[string]string{"app": "api"}, false},
		"no labels":             {nil, false},
	} {
		pod := examplePod()
		pod.Labels = tc.labels
		if got := c.Matches(observed.NewPod(pod)); got != tc.want {
			t.Errorf("%s: matches %t, want %t", name, got, tc.want)
		}
	}
	if all := compiled(v1alpha1.PodConfigMapConfigSpec{}); !all.Matches(observed.NewPod(&corev1.Pod{})) {
		t.Error("a config without a selector does not match every pod")
	}
}

// TestCompileTold: what the status says of another generation is not told yet.
func TestCompileTold(t *testing.T) {
	for observed, want := range map[int64]string{2: "", 3: "TooLarge"} {
		got := Compile(&v1alpha1.PodConfigMapConfig{
			ObjectMeta: metav1.ObjectMeta{Generation: 3},
			Status: v1alpha1.PodConfigMapConfigStatus{Conditions: []metav1.Condition{
				{Type: v1alpha1.ConditionReady, Reason: "NameConflict", ObservedGeneration: 3},
				{Type: v1alpha1.ConditionConfigMapsSynced, Reason: "TooLarge", ObservedGeneration: observed},
			}},
		}).told
		if got != want {
			t.Errorf("for generation %d of 3: told %q, want %q", observed, got, want)
		}
	}
}

// TestCompileSelector has a selector that the API server refuses: were one
// there, no ConfigMap may go because of it.
func TestCompileSelector(t *testing.T) {
	c := compiled(v1alpha1.PodConfigMapConfigSpec{PodSelector: &v1alpha1.PodSelector{
		MatchExpressions: []v1alpha1.PodSelectorRequirement{{Key: "tier", Operator: "Near"}},
	}})
	if c.Problem == nil || c.Problem.Message != `spec.podSelector: "Near" is not a valid label selector operator` {
		t.Errorf("problem %v", c.Problem)
	}
	if !c.Matches(observed.NewPod(examplePod())) {
		t.Error("a config with a bad selector lets go of its pods")
	}
	if _, failure := c.Render(observed.NewPod(examplePod())); failure != c.Problem {
		t.Errorf("rendering fails with %v, want the config's problem", failure)
	}
}
