// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const roles = `
kind: ClusterRole
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: everywhere}
rules:
- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create]}
---
kind: Role
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: here, namespace: system}
rules:
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
kind: ClusterRoleBinding
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: everywhere}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: everywhere}
subjects: [{kind: ServiceAccount, name: worker, namespace: system}]
---
kind: RoleBinding
apiVersion: rbac.authorization.k8s.io/v1
metadata: {name: here, namespace: system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: here}
subjects: [{kind: ServiceAccount, name: worker, namespace: system}]
`

func objectsIn(t *testing.T, text string) (objects []*unstructured.Unstructured) {
	t.Helper()
	for document := range strings.SplitSeq(text, "---\n") {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, object)
	}
	return objects
}

func TestUnneeded(t *testing.T) {
	grants, err := Grants(objectsIn(t, roles), "system", "worker")
	if err != nil || len(grants) != 5 {
		t.Fatalf("%v (%v)", grants, err)
	}
	// The list is needed by the watch; the Role's right to create Events is the
	// ClusterRole's, too; nobody patched.
	used := map[Right]bool{
		{"garden", "", "pods", "watch"}:                  true,
		{"garden", "events.k8s.io", "events", "create"}:  true,
		{"system", "events.k8s.io", "events", "create"}:  true,
		{"garden", "coordination.k8s.io", "leases", "x"}: true,
	}
	unneeded := Unneeded(grants, used)
	if len(unneeded) != 2 || unneeded[0].String() != "create events.events.k8s.io in system (RoleBinding here, Role here, rule 1)" ||
		unneeded[1].String() != "patch events.events.k8s.io in system (RoleBinding here, Role here, rule 1)" {
		t.Errorf("%v", unneeded)
	}
	if all := Unneeded(grants, nil); len(all) != len(grants) {
		t.Errorf("of nobody's work, only %v are not needed", all)
	}
	if none, err := Grants(objectsIn(t, roles), "system", "other"); len(none) > 0 || err != nil {
		t.Errorf("%v (%v)", none, err)
	}
}

func TestGrantsThatCannotBeListed(t *testing.T) {
	for from, to := range map[string]string{
		"verbs: [list, watch]": `verbs: ["*"]`,
		"kind: Role\n":         "kind: Other\n",
		"resources: [pods]":    "resources: 7",
	} {
		if _, err := Grants(objectsIn(t, strings.Replace(roles, from, to, 1)), "system", "worker"); err == nil {
			t.Errorf("%q in place of %q passes", to, from)
		}
	}
}

func TestAudit(t *testing.T) {
	a, err := NewAudit(t.TempDir(), "system", "worker")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Entries(); err == nil {
		t.Error("a log that is not there is read")
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(a.log, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"verb":"get","requestURI":"/healthz"}
{"verb":"patch","requestURI":"/x","responseStatus":{"code":403},"objectRef":{"resource":"pods","subresource":"status","namespace":"n"}}
{"verb":"patch","requestURI":"/y","responseStatus":{"code":201},"objectRef":{"apiGroup":"g","resource":"nodes"}}
{"verb":"list","requ`)
	entries, err := a.Entries()
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v (%v)", entries, err)
	}
	if used := Used(entries); len(used) != 3 || !used[Right{"n", "", "pods/status", "patch"}] ||
		!used[Right{"", "g", "nodes", "patch"}] || !used[Right{"", "g", "nodes", "create"}] {
		t.Errorf("used %v", used)
	}
	if denied := Denied(entries); len(denied) != 1 || denied[0] != "patch /x" {
		t.Errorf("denied %v", denied)
	}
	write("nonsense\n")
	if _, err := a.Entries(); err == nil {
		t.Error("nonsense is read")
	}
}
