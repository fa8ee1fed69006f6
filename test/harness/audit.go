// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Audit is the API server's log of what one ServiceAccount asked for.
type Audit struct{ policy, log string }

// AuditEntry is the part of an audit.k8s.io/v1 Event that counts here.
type AuditEntry struct {
	Verb           string
	RequestURI     string
	ResponseStatus struct{ Code int }
	ObjectRef      *struct{ APIGroup, Resource, Subresource, Namespace, Name string }
}

// Right is a request's, in the terms of a rule of RBAC; the resource of a request
// to a subresource is "resource/subresource". No namespace: of the whole cluster.
type Right struct{ Namespace, Group, Resource, Verb string }

func (r Right) String() string {
	where := "in " + r.Namespace
	if r.Namespace == "" {
		where = "everywhere"
	}
	return fmt.Sprintf("%s %s.%s %s", r.Verb, r.Resource, r.Group, where)
}

// NewAudit prepares the log in a folder; the API server writes it when it is
// started with Flags.
func NewAudit(dir, namespace, account string) (*Audit, error) {
	a := &Audit{policy: filepath.Join(dir, "policy.yaml"), log: filepath.Join(dir, "audit.log")}
	policy := fmt.Sprintf(`apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["system:serviceaccount:%s:%s"]
  - level: None
`, namespace, account)
	if err := os.WriteFile(a.policy, []byte(policy), 0o644); err != nil {
		return nil, fmt.Errorf("writing the audit policy: %w", err)
	}
	return a, nil
}

// Flags are the API server's.
func (a *Audit) Flags() []string {
	return []string{"--audit-policy-file=" + a.policy, "--audit-log-path=" + a.log}
}

// Entries are what was logged until now, the oldest first.
func (a *Audit) Entries() ([]AuditEntry, error) {
	text, err := os.ReadFile(a.log)
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	var all []AuditEntry
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var e AuditEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("reading the audit log: %w: %s", err, line)
		}
		all = append(all, e)
	}
	return all, nil
}

// Used are the rights that the entries' requests needed. Requests that are of no
// resource, such as discovery, need none; an apply that creates needs two.
func Used(entries []AuditEntry) map[Right]bool {
	used := map[Right]bool{}
	for _, e := range entries {
		if e.ObjectRef == nil {
			continue
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		used[Right{e.ObjectRef.Namespace, e.ObjectRef.APIGroup, resource, e.Verb}] = true
		if e.Verb == "patch" && e.ResponseStatus.Code == http.StatusCreated {
			used[Right{e.ObjectRef.Namespace, e.ObjectRef.APIGroup, resource, "create"}] = true
		}
	}
	return used
}

// Denied are the requests that were refused for lack of a right.
func Denied(entries []AuditEntry) []string {
	var denied []string
	for _, e := range entries {
		if code := e.ResponseStatus.Code; code == http.StatusUnauthorized || code == http.StatusForbidden {
			denied = append(denied, strings.ToLower(e.Verb)+" "+e.RequestURI)
		}
	}
	slices.Sort(denied)
	return slices.Compact(denied)
}
