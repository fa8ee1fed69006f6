// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
)

// A virtual node that cannot boot says why, and leaves nothing. (One that can is in
// test/e2e: that takes minutes.)
func TestFailedVirtualNode(t *testing.T) {
	needsRoot(t)
	c, err := Start(t.Context(), Options{Nodes: 1, Logs: logsOf(t)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"vmlinuz": "no kernel", "modules.json": "[]"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := c.addVirtual(vm.Kernel{Series: "0", Version: "0", Dir: dir})
	if err := n.configure(); err != nil {
		t.Fatal(err)
	}
	if err := n.configureVirtual(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "booting virtual-2: the machine has ended; QEMU says:\nqemu") {
		t.Errorf("the error is %v", err)
	}
	if c.Node(n.Name) != n || slices.Contains(c.Nodes(), n) {
		t.Error("the node should be found by its name, and not be among the others")
	}
	if err := n.Partition(); err == nil {
		t.Error("a virtual node was kept apart")
	}
	if err := c.RemoveVirtualNode(t.Context(), n); err != nil {
		t.Error(err)
	}
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	nothingRemains(t)
}

// The BPF objects of other nodes are those of the host.
func TestObjectsOfTheHost(t *testing.T) {
	if _, err := (&Node{Name: "node-1"}).Objects(t.Context()); err == nil || !strings.Contains(err.Error(), "its kernel is the host's") {
		t.Errorf("the error is %v", err)
	}
}

func TestChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one two one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := change(path, "one", "three"); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "three two three" {
		t.Errorf("%q, %v", text, err)
	}
	if err := change(path, "one", "three"); err == nil || !strings.Contains(err.Error(), "it is not there") {
		t.Errorf("what is not there became %v", err)
	}
}
