// SPDX-License-Identifier: Apache-2.0

// Package agreement tests that the operator is the same however it is installed:
// by kustomize, by dist/install.yaml, by Helm without values, and by OLM.
package agreement

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/helm"
)

// shipped is what an installation has.
type shipped struct {
	deployments map[string]appsv1.DeploymentSpec
	services    map[string]corev1.ServiceSpec
	crds        map[string]apiextensionsv1.CustomResourceDefinitionSpec
	// rights are "ACCOUNT may VERB RESOURCE.GROUP SCOPE".
	rights map[string]bool
	// forPeople are the rules of ClusterRoles that are part of built-in ones.
	forPeople map[string][]rbacv1.PolicyRule
}

// The scopes of rights. OLM makes Roles in the namespaces that are watched, or
// ClusterRoles where that is all of them; the other ways do the latter.
const (
	inWatched = "in the watched namespaces"
	inOwn     = "in the operator's namespace"
)

func TestAllWaysInstallTheSame(t *testing.T) {
	want := read(t, kustomize(t, "config/default"))
	if len(want.deployments) != 1 || len(want.services) != 2 || len(want.crds) != 2 || len(want.rights) < 30 || len(want.forPeople) != 4 {
		t.Fatalf("config/default has %d Deployments, %d Services, %d CRDs, %d rights, %d roles for people",
			len(want.deployments), len(want.services), len(want.crds), len(want.rights), len(want.forPeople))
	}
	for name, objects := range map[string][]*unstructured.Unstructured{
		"dist/install.yaml": file(t, "dist/install.yaml"),
		"the chart":         chart(t),
		"the bundle":        bundle(t),
	} {
		t.Run(name, func(t *testing.T) {
			got := read(t, objects)
			same(t, "Deployments", got.deployments, want.deployments)
			same(t, "Services", got.services, want.services)
			same(t, "CRDs", got.crds, want.crds)
			same(t, "rights", got.rights, want.rights)
			same(t, "roles for people", got.forPeople, want.forPeople)
		})
	}
}

// The agents' settings that the chart spells out are those that they have without.
func TestChartsAgentsAreTheDefault(t *testing.T) {
	got := environ(t, read(t, chart(t, "--set", "ebpf.enabled=true")))
	want := environ(t, read(t, kustomize(t, "config/default")))
	want["EBPF_ENABLED"] = "true"
	same(t, "settings", parse(t, got), parse(t, want))
}

// Each difference that matters is one that the comparison sees.
func TestDifferencesAreSeen(t *testing.T) {
	objects := kustomize(t, "config/default")
	want := read(t, objects)
	text := func(s shipped) string {
		return asJSON(t, s.deployments) + asJSON(t, s.services) + asJSON(t, s.crds) + asJSON(t, s.rights) + asJSON(t, s.forPeople)
	}
	whole, err := json.Marshal(objects)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"environment":      {`"value":"5s"`, `"value":"6s"`},
		"arguments":        {`"args":["manager"]`, `"args":["agent"]`},
		"port":             {`"port":8080`, `"port":8081`},
		"container's port": {`"containerPort":8080`, `"containerPort":8081`},
		"probe":            {`"path":"/readyz"`, `"path":"/healthz"`},
		"resources":        {`"memory":"512Mi"`, `"memory":"1Gi"`},
		"root":             {`"readOnlyRootFilesystem":true`, `"readOnlyRootFilesystem":false`},
		"capabilities":     {`"drop":["ALL"]`, `"drop":[]`},
		"pod's security":   {`"runAsNonRoot":true`, `"runAsNonRoot":false`},
		"image":            {`podconfigmap-controller:v`, `podconfigmap-controller:w`},
		"verb":             {`"verbs":["create","delete","get","list","patch","update","watch"]`, `"verbs":["create","delete","get","list","patch"]`},
		"resource":         {`"resources":["leases"]`, `"resources":["secrets"]`},
		"a binding":        {`"kind":"RoleBinding"`, `"kind":"ConfigMap"`},
		"account":          {`"serviceAccountName":"podconfigmap-controller-controller-manager"`, `"serviceAccountName":"default"`},
		"schema":           {`"maxLength":16384`, `"maxLength":16385`},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(string(whole), change[0], change[1], 1)
			if changed == string(whole) {
				t.Fatalf("config/default has no %s", change[0])
			}
			var others []*unstructured.Unstructured
			if err := json.Unmarshal([]byte(changed), &others); err != nil {
				t.Fatal(err)
			}
			if text(read(t, others)) == text(want) {
				t.Errorf("%s instead of %s is not seen", change[1], change[0])
			}
		})
	}
}

// same compares as JSON, which leaves out what is empty.
func same[K any](t *testing.T, what string, got, want K) {
	t.Helper()
	if g, w := asJSON(t, got), asJSON(t, want); g != w {
		at := 0
		for at < min(len(g), len(w)) && g[at] == w[at] {
			at++
		}
		from := max(0, at-200)
		t.Errorf("%s differ:\n got …%s\nwant …%s", what, g[from:min(len(g), at+300)], w[from:min(len(w), at+300)])
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func kustomize(t *testing.T, folder string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := helm.Kustomize(t.Context(), folder)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func file(t *testing.T, path string) []*unstructured.Unstructured {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	objects, err := helm.Decode(reader)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return objects
}

// chart renders the chart's objects, without its test.
func chart(t *testing.T, values ...string) []*unstructured.Unstructured {
	t.Helper()
	h, err := helm.New("helm", t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := helm.Chart()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := h.Render(t.Context(), folder, append(values, "--no-hooks")...)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func bundle(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "bundle", "manifests", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no bundle: make bundle (%v)", err)
	}
	var all []*unstructured.Unstructured
	for _, path := range files {
		relative, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, file(t, relative)...)
	}
	return all
}

func as[T any](t *testing.T, o *unstructured.Unstructured) T {
	t.Helper()
	var typed T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &typed, true); err != nil {
		t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
	return typed
}

// read sorts what is in the objects.
func read(t *testing.T, objects []*unstructured.Unstructured) shipped {
	t.Helper()
	s := shipped{
		deployments: map[string]appsv1.DeploymentSpec{}, services: map[string]corev1.ServiceSpec{},
		crds: map[string]apiextensionsv1.CustomResourceDefinitionSpec{}, rights: map[string]bool{}, forPeople: map[string][]rbacv1.PolicyRule{},
	}
	rules := map[string][]rbacv1.PolicyRule{}
	for _, o := range objects {
		switch o.GetKind() {
		case "Deployment":
			s.deployments[o.GetName()] = as[appsv1.Deployment](t, o).Spec
		case "Service":
			s.services[o.GetName()] = as[corev1.Service](t, o).Spec
		case "CustomResourceDefinition":
			s.crds[o.GetName()] = as[apiextensionsv1.CustomResourceDefinition](t, o).Spec
		case "ClusterRole", "Role":
			rules[o.GetKind()+" "+o.GetName()] = as[rbacv1.ClusterRole](t, o).Rules // a Role has the same fields
			for label := range o.GetLabels() {
				if strings.Contains(label, "aggregate-to-") {
					s.forPeople[o.GetName()+" "+label] = as[rbacv1.ClusterRole](t, o).Rules
				}
			}
		case "ClusterServiceVersion":
			s.fromOLM(t, o)
		}
	}
	for _, o := range objects {
		if o.GetKind() == "ClusterRoleBinding" || o.GetKind() == "RoleBinding" {
			s.bind(as[rbacv1.ClusterRoleBinding](t, o), o.GetKind() == "RoleBinding", rules)
		}
	}
	return s
}

func (s *shipped) bind(binding rbacv1.ClusterRoleBinding, own bool, rules map[string][]rbacv1.PolicyRule) {
	scope := inWatched
	if own {
		scope = inOwn
	}
	for _, subject := range binding.Subjects {
		s.grant(subject.Name, scope, rules[binding.RoleRef.Kind+" "+binding.RoleRef.Name])
	}
}

func (s *shipped) grant(account, scope string, rules []rbacv1.PolicyRule) {
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					s.rights[fmt.Sprintf("%s may %s %s.%s %s %v", account, verb, resource, group, scope, rule.ResourceNames)] = true
				}
			}
		}
	}
}

// csv is what matters here of a ClusterServiceVersion.
type csv struct {
	Spec struct {
		Install struct {
			Spec struct {
				Deployments []struct {
					Name string
					Spec appsv1.DeploymentSpec
				}
				Permissions, ClusterPermissions []struct {
					ServiceAccountName string
					Rules              []rbacv1.PolicyRule
				}
			}
		}
	}
}

// fromOLM reads what OLM would install. Two variables are OLM's own affair: which
// namespaces to watch stands in an annotation that it writes, and the agent's image
// is named for mirrors though it is the manager's.
func (s *shipped) fromOLM(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	var version csv
	if err := json.Unmarshal([]byte(asJSON(t, o)), &version); err != nil {
		t.Fatal(err)
	}
	install := version.Spec.Install.Spec
	for _, d := range install.Deployments {
		c := &d.Spec.Template.Spec.Containers[0]
		c.Env = slices.DeleteFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == "RELATED_IMAGE_AGENT" && v.Value == c.Image })
		for i, v := range c.Env {
			if v.Name == "WATCH_NAMESPACE" && v.ValueFrom != nil && v.ValueFrom.FieldRef.FieldPath == "metadata.annotations['olm.targetNamespaces']" {
				c.Env[i] = corev1.EnvVar{Name: v.Name}
			}
		}
		s.deployments[d.Name] = d.Spec
	}
	for _, p := range slices.Concat(install.Permissions, install.ClusterPermissions) {
		s.grant(p.ServiceAccountName, inWatched, p.Rules)
	}
}

// environ is the environment of the only Deployment's container.
func environ(t *testing.T, s shipped) map[string]string {
	t.Helper()
	if len(s.deployments) != 1 {
		t.Fatalf("there are %d Deployments", len(s.deployments))
	}
	environ := map[string]string{"POD_NAME": "a", "POD_NAMESPACE": "b"} // by the downward API
	for d := range maps.Values(s.deployments) {
		for _, v := range d.Template.Spec.Containers[0].Env {
			if v.ValueFrom == nil {
				environ[v.Name] = v.Value
			}
		}
	}
	return environ
}

func parse(t *testing.T, environ map[string]string) *settings.Settings {
	t.Helper()
	s, err := settings.Parse(environ)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
