// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// report writes an agent's report with `kubectl patch --subresource=status`.
func report(t *testing.T, name string, status any) error {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	_, err = nodes.Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict}, "status")
	return err
}

func newNode(t *testing.T, name string) {
	t.Helper()
	if nodes == nil {
		t.Skip("needs an API server; run without -short")
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("EBPFNode"))
	object.SetName(name)
	if _, err := nodes.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestEBPFNode: what an agent reports is stored as it is, and shown.
func TestEBPFNode(t *testing.T) {
	newNode(t, "ip-10-0-0-1.ec2.internal")
	want := v1alpha1.EBPFNodeStatus{
		KernelVersion: "6.1.0-18-cloud-amd64", Architecture: "amd64", CgroupVersion: "v2", BTF: true,
		Features: []v1alpha1.EBPFNodeFeature{
			{Name: v1alpha1.FeatureSyscallCounter, Supported: true},
			{Name: v1alpha1.FeatureL4Firewall, Reason: "no cgroup v2; boot with systemd.unified_cgroup_hierarchy=1"},
			{Name: v1alpha1.FeatureConnectDenied, Reason: "no cgroup v2; boot with systemd.unified_cgroup_hierarchy=1"},
		},
		AttachedPods: 7,
		Configs: []v1alpha1.EBPFNodeConfig{
			{Namespace: "shop", Name: "web", Generation: 3, Desired: 9, Attached: 7, Failed: 1, Unsupported: 1, Message: "one of each"},
			{Namespace: "shop", Name: "none", Generation: 1},
		},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDegraded, LastTransitionTime: metav1.Now().Rfc3339Copy()}},
	}
	if err := report(t, "ip-10-0-0-1.ec2.internal", want); err != nil {
		t.Fatal(err)
	}
	object, err := nodes.Get(t.Context(), "ip-10-0-0-1.ec2.internal", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := object.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	got := &v1alpha1.EBPFNode{}
	if err := json.Unmarshal(text, got); err != nil {
		t.Fatal(err)
	}
	gotText, _ := json.Marshal(got.Status)
	wantText, _ := json.Marshal(want)
	if string(gotText) != string(wantText) {
		t.Errorf("stored\n%s, want\n%s", gotText, wantText)
	}
	columnsWant := `Name=ip-10-0-0-1.ec2.internal priority 0
Ready=False priority 0
Pods=7 priority 0
Kernel=6.1.0-18-cloud-amd64 priority 0
Unsupported=L4Firewall priority 0
Reason=Degraded priority 1
Arch=amd64 priority 1
Cgroups=v2 priority 1
`
	if got := columns(t, "ebpfnodes", "ip-10-0-0-1.ec2.internal"); got != columnsWant {
		t.Errorf("columns\n%swant\n%s", got, columnsWant)
	}
}

func TestEBPFNodeBounds(t *testing.T) {
	newNode(t, "bounds")
	config := func(change func(map[string]any)) map[string]any {
		c := map[string]any{"namespace": "shop", "name": "web", "generation": 1}
		change(c)
		return map[string]any{"configs": []any{c}}
	}
	for name, tc := range map[string]struct {
		status any
		want   string
	}{
		"a negative count":    {config(func(c map[string]any) { c["failed"] = -1 }), "status.configs[0].failed"},
		"a long message":      {config(func(c map[string]any) { c["message"] = strings.Repeat("x", 1025) }), "status.configs[0].message"},
		"no generation":       {config(func(c map[string]any) { delete(c, "generation") }), "status.configs[0].generation"},
		"the same twice":      {map[string]any{"configs": []any{map[string]any{"namespace": "a", "name": "b", "generation": 1}, map[string]any{"namespace": "a", "name": "b", "generation": 2}}}, "status.configs[1]"},
		"a feature's name":    {map[string]any{"features": []any{map[string]any{"name": strings.Repeat("x", 64), "supported": true}}}, "status.features[0].name"},
		"too long a kernel":   {map[string]any{"kernelVersion": strings.Repeat("x", 257)}, "status.kernelVersion"},
		"an unknown field":    {map[string]any{"pods": 1}, `"status.pods"`},
		"Go's time and no ms": {map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01t00:00:00z"}}}, "lastTransitionTime"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := report(t, "bounds", tc.status); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("answer %v, want one that names %s", err, tc.want)
			}
		})
	}
}
