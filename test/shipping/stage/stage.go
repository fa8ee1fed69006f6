// SPDX-License-Identifier: Apache-2.0

// Package stage is what the tests of shipping have in common: a control plane with a
// node of processes, and short forms for what they say at every step.
package stage

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
	"github.com/podconfigmap/podconfigmap-controller/test/shipping/processnode"
)

// Patience is for what takes seconds on a quiet machine.
const Patience = 5 * time.Minute

// Must ends the test with an error, if there is one.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Got gives the value of a call that also returns an error: Got(call())(t).
func Got[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		Must(t, err)
		return value
	}
}

// Await looks until nothing is wrong any more.
func Await(t testing.TB, what string, wrong func() error) {
	t.Helper()
	err := errors.New("not looked yet")
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = wrong(); err == nil {
			return
		}
	}
	t.Fatalf("waiting until %s: %v", what, err)
}

// Cluster is a control plane with one node, whose pods are processes.
type Cluster struct {
	*harness.Cluster
	Node *processnode.Node
}

// Start starts a cluster, which ends with the test. Of the options, the node's name
// and the configuration are set here.
func Start(t *testing.T, o processnode.Options) *Cluster {
	t.Helper()
	c := &Cluster{Cluster: Got(harness.StartBareCluster(t.Context(), controlplane.Options{ControllerManager: true, Progress: os.Stderr}))(t)}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	o.Name, o.Config = "node-1", c.Config()
	c.Node = Got(processnode.Start(t.Context(), c.Client, o))(t)
	t.Cleanup(func() {
		if err := c.Node.Stop(); err != nil {
			t.Errorf("the node: %v", err)
		}
	})
	return c
}
