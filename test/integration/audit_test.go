// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"
)

// call is one call of a manager, as the API server noted it.
type call struct {
	Verb string `json:"verb"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	UserAgent string `json:"userAgent"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	Received time.Time `json:"requestReceivedTimestamp"`
	Stage    string    `json:"stage"`
}

func (c *call) String() string {
	resource := c.ObjectRef.Resource
	if c.ObjectRef.Subresource != "" {
		resource += "/" + c.ObjectRef.Subresource
	}
	return fmt.Sprintf("%s %s %s/%s: %d", c.Verb, resource, c.ObjectRef.Namespace, c.ObjectRef.Name, c.ResponseStatus.Code)
}

// is compares the verb and the resource.
func (c *call) is(verb, resource string) bool {
	return c.Verb == verb && c.ObjectRef.Resource == resource && c.ObjectRef.Subresource == ""
}

// calls are the manager's calls since a time, but for watches and the Lease.
// The API server writes them down before it answers.
func (m *manager) calls(t *testing.T, since time.Time) []*call {
	t.Helper()
	file, err := os.Open(auditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []*call
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		c := &call{}
		if err := json.Unmarshal(lines.Bytes(), c); err != nil {
			continue // the last line, half written
		}
		if c.User.Username == m.user && c.Received.After(since) && c.Stage == "ResponseComplete" &&
			c.Verb != "watch" && c.ObjectRef.Resource != "leases" && c.ObjectRef.Resource != "" {
			all = append(all, c)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
