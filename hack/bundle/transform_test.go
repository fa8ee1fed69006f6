// SPDX-License-Identifier: Apache-2.0

package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const stream = `
apiVersion: v1
kind: Namespace
metadata: {name: system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: podconfigmap-controller-agent, namespace: system}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: manager, namespace: system}
spec: {template: {spec: {containers: [{name: manager, image: "controller:latest", env: [{name: A, value: b}]}]}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: agent-role}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get]}
- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: for-people}
rules:
- {apiGroups: [""], resources: [pods], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: agent-role, namespace: system}
rules:
- {apiGroups: [apps], resources: [daemonsets], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: agent-binding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent-role}
subjects: [{kind: ServiceAccount, name: podconfigmap-controller-agent, namespace: system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: agent-binding, namespace: system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent-role}
subjects: [{kind: ServiceAccount, name: podconfigmap-controller-agent, namespace: system}]
---
apiVersion: podconfig.example.com/v1alpha1
kind: PodConfigMapConfig
metadata: {name: example, namespace: demo}
`

func objects(t *testing.T) []object {
	t.Helper()
	all, err := decode(strings.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func named(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	at := slices.IndexFunc(all, func(o object) bool { return o.kind() == kind && o.name() == name })
	if at < 0 {
		t.Fatalf("%s %q is missing", kind, name)
	}
	return all[at]
}

func resources(t *testing.T, role object) []string {
	t.Helper()
	typed := &rbacv1.ClusterRole{}
	if err := typedAs(role, typed); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range typed.Rules {
		all = append(all, r.Resources...)
	}
	return all
}

func TestForOLM(t *testing.T) {
	listed, held, err := forOLM(objects(t), "registry.example.com/operator:v1")
	if err != nil {
		t.Fatal(err)
	}
	if len(listed) != 7 || len(held) != 2 {
		t.Errorf("%d listed, %d held: %v %v", len(listed), len(held), listed, held)
	}
	// The part with namespaces is bound by a RoleBinding, the rest as before.
	if got := resources(t, named(t, listed, "ClusterRole", "agent-role")); !slices.Equal(got, []string{"pods"}) {
		t.Errorf("permissions for %v", got)
	}
	if got := resources(t, named(t, listed, "ClusterRole", "agent-role-cluster")); !slices.Equal(got, []string{"nodes"}) {
		t.Errorf("clusterPermissions for %v", got)
	}
	if ref := named(t, listed, "RoleBinding", "agent-binding").text("roleRef", "name"); ref != "agent-role" {
		t.Errorf("the RoleBinding is for %q", ref)
	}
	if ref := named(t, listed, "ClusterRoleBinding", "agent-binding").text("roleRef", "name"); ref != "agent-role-cluster" {
		t.Errorf("the ClusterRoleBinding is for %q", ref)
	}
	named(t, listed, "ClusterRole", "for-people")
	for _, o := range append(held, named(t, listed, "PodConfigMapConfig", "example")) {
		if in := o.text("metadata", "namespace"); in != "" {
			t.Errorf("%s %q is in namespace %q", o.kind(), o.name(), in)
		}
	}
	if label := named(t, held, "Role", "agent-role").text("metadata", "labels", "app.kubernetes.io/name"); label != packageName {
		t.Errorf("the Role's label is %q", label)
	}
	subjects, _, err := unstructured.NestedSlice(named(t, held, "RoleBinding", "agent-binding"), "subjects")
	if err != nil || !reflect.DeepEqual(subjects, []any{map[string]any{"kind": "ServiceAccount", "name": agentAccount}}) {
		t.Errorf("subjects %v (%v)", subjects, err)
	}
	containers, _, err := unstructured.NestedSlice(named(t, listed, "Deployment", "manager"), "spec", "template", "spec", "containers")
	want := []any{map[string]any{"name": "manager", "image": "registry.example.com/operator:v1", "env": []any{
		map[string]any{"name": "A", "value": "b"}, map[string]any{"name": agentImage, "value": "registry.example.com/operator:v1"},
	}}}
	if err != nil || !reflect.DeepEqual(containers, want) {
		t.Errorf("containers %v (%v)", containers, err)
	}
}

func TestForOLMRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"an unknown resource":  {"resources: [pods], verbs: [list, watch]", "resources: [widgets], verbs: [list, watch]", `resource "widgets": add it to clusterScoped`},
		"a mixed rule":         {"resources: [nodes]", "resources: [nodes, pods]", "write two"},
		"another account":      {"name: podconfigmap-controller-agent, namespace: system}]", "name: other, namespace: system}]", `for ServiceAccount "other"`},
		"a user":               {"[{kind: ServiceAccount,", "[{kind: User,", "for User"},
		"a role that is gone":  {"kind: ClusterRole, name: agent-role}", "kind: ClusterRole, name: gone}", `ClusterRole "gone" is missing`},
		"a second container":   {"containers: [{", "containers: [{name: other}, {", "2 containers instead of 1"},
		"rules of a bad shape": {"rules:\n- {apiGroups: [\"\"], resources: [nodes]", "rules:\n- {apiGroups: 1, resources: [nodes]", `reading ClusterRole "agent-role"`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(stream, tc.old, tc.new, 1)
			if text == stream {
				t.Fatal("nothing was replaced")
			}
			all, err := decode(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := forOLM(all, "image"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("forOLM() = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestShippedRights(t *testing.T) {
	all, err := shippedRights(objects(t))
	if err != nil {
		t.Fatal(err)
	}
	agent := all[agentAccount]
	if len(agent.Everywhere) != 2 || len(agent.Own) != 1 || agent.Own[0].Resources[0] != "daemonsets" || len(all[managerAccount].Everywhere) != 0 {
		t.Errorf("rights %+v", agent)
	}
}

func TestCompleteCSV(t *testing.T) {
	csv := object{"metadata": map[string]any{"annotations": map[string]any{"createdAt": "now", "kept": "yes"}}, "spec": map[string]any{"icon": []any{}}}
	if err := completeCSV(csv, "image:v2", "0.0.9", []byte("<svg/>")); err != nil {
		t.Fatal(err)
	}
	want := object{
		"metadata": map[string]any{"annotations": map[string]any{"containerImage": "image:v2", "kept": "yes"}},
		"spec": map[string]any{
			"icon":          []any{map[string]any{"base64data": "PHN2Zy8+", "mediatype": "image/svg+xml"}},
			"relatedImages": []any{map[string]any{"name": "manager", "image": "image:v2"}, map[string]any{"name": "agent", "image": "image:v2"}},
			"replaces":      "podconfigmap-controller.v0.0.9",
		},
	}
	if !reflect.DeepEqual(csv, want) {
		t.Errorf("got  %v\nwant %v", csv, want)
	}
	if err := completeCSV(object{}, "image", "", nil); err == nil {
		t.Error("a CSV without a spec was completed")
	}
}

func TestNameScorecardImage(t *testing.T) {
	config := func(image string) object {
		return object{"stages": []any{map[string]any{"tests": []any{map[string]any{"image": "other"}, map[string]any{"image": image}}}}}
	}
	got := config("scorecard")
	if err := nameScorecardImage(got, "ours:v1"); err != nil || !reflect.DeepEqual(got, config("ours:v1")) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := nameScorecardImage(config("else"), "ours:v1"); err == nil {
		t.Error("a configuration without our image was accepted")
	}
}

func TestNothingToRead(t *testing.T) {
	if _, err := decode(strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "kustomize build") {
		t.Errorf("decode of nothing: %v", err)
	}
}
