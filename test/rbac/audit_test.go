// SPDX-License-Identifier: Apache-2.0

package rbac

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// right is one that a role grants, and a request uses.
type right struct{ group, resource, verb string }

func (r right) String() string { return fmt.Sprintf("%s %s.%s", r.verb, r.resource, r.group) }

// audit is the API server's log of what the operator's ServiceAccount asked for.
type audit struct{ policy, log string }

func newAudit(t *testing.T) *audit {
	t.Helper()
	dir := t.TempDir()
	a := &audit{policy: filepath.Join(dir, "policy.yaml"), log: filepath.Join(dir, "audit.log")}
	policy := fmt.Sprintf(`apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["system:serviceaccount:%s:%s"]
  - level: None
`, system, account)
	if err := os.WriteFile(a.policy, []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *audit) flags() []string {
	return []string{"--audit-policy-file=" + a.policy, "--audit-log-path=" + a.log}
}

// entry is the part of an audit.k8s.io/v1 Event that counts here.
type entry struct {
	Verb           string
	RequestURI     string
	ResponseStatus struct{ Code int }
	ObjectRef      *struct{ APIGroup, Resource, Subresource, Namespace, Name string }
}

func (a *audit) entries(t *testing.T) []entry {
	t.Helper()
	text, err := os.ReadFile(a.log)
	if err != nil {
		t.Fatal(err)
	}
	var all []entry
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// used are the rights that requests needed.
func (a *audit) used(t *testing.T) map[right]bool {
	t.Helper()
	used := map[right]bool{}
	for _, e := range a.entries(t) {
		if e.ObjectRef == nil {
			continue // such as discovery
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		used[right{e.ObjectRef.APIGroup, resource, e.Verb}] = true
	}
	return used
}

// denied are the requests that were refused for lack of a right.
func (a *audit) denied(t *testing.T) []string {
	t.Helper()
	var denied []string
	for _, e := range a.entries(t) {
		if e.ResponseStatus.Code == 401 || e.ResponseStatus.Code == 403 {
			denied = append(denied, e.Verb+" "+e.RequestURI)
		}
	}
	slices.Sort(denied)
	return slices.Compact(denied)
}
