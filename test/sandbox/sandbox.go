// SPDX-License-Identifier: Apache-2.0

// Package sandbox makes what kubelet and a container runtime make of a node and
// its pods: cgroup trees of both drivers, network namespaces joined by a bridge,
// a BPF file system, and processes that are born inside. Tests of the eBPF
// programs and of the node agent run against it, on the real kernel; so does
// `make run EBPF_ENABLED=true`.
//
// It needs root and a cgroup v2 mount; nothing of the machine's own network or
// cgroups is touched. Everything is gone at the end of the test, also after a
// failure or a panic: what a killed test binary leaves, a janitor removes.
//
// Processes inside (peers) are the test binary itself, started again: importing
// this package is all that it needs (an init function recognizes them), and no
// TestMain.
package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// TB is what the package needs of a testing.TB. Fatalf and Skipf do not return.
type TB interface {
	Helper()
	Name() string
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Cleanup(f func())
}

// Node is a sub-cgroup with both drivers' kubepods trees, a network namespace
// with a bridge that pods are joined to (made when it is first needed), and a BPF
// file system.
type Node struct {
	t       TB
	root    string
	bpffs   string
	network *network
	outside *Container

	mu   sync.Mutex
	pods []*Pod
}

// New makes a node, to be removed at the end of the test. It skips the test
// where the machine has no root or no cgroup v2 to offer.
func New(t TB) *Node {
	t.Helper()
	n := &Node{t: t, root: Cgroup(t)}
	if err := n.makeTrees(); err != nil {
		t.Fatalf("making the node's cgroups: %v", err)
	}
	n.bpffs = mountBPFFS(t)
	nw, err := newNetwork()
	if err != nil {
		t.Fatalf("making the node's network: %v", err)
	}
	t.Cleanup(func() {
		if err := n.remove(); err != nil {
			t.Errorf("removing the sandbox: %v", err)
		}
	})
	n.network = nw
	n.outside = &Container{node: n, cgroup: filepath.Join(n.root, "system.slice"), netns: nw.ns}
	return n
}

// Root is the cgroup that stands for the node's cgroup v2 mount.
func (n *Node) Root() string { return n.root }

// BPFFS is a directory, a BPF file system of this node's own.
func (n *Node) BPFFS() string { return n.bpffs }

// Addresses are the node's own on the network of its pods: IPv4, IPv6.
func (n *Node) Addresses() []netip.Addr {
	n.t.Helper()
	addresses, err := n.network.gateway()
	if err != nil {
		n.t.Fatalf("making the node's bridge: %v", err)
	}
	return slices.Clone(addresses)
}

// Peer starts a process outside any pod, in the node's network namespace.
func (n *Node) Peer() *Peer {
	n.t.Helper()
	return n.outside.Peer()
}

func (n *Node) makeTrees() error {
	for _, dir := range []string{
		"system.slice",
		"kubepods/burstable", "kubepods/besteffort",
		"kubepods.slice/kubepods-burstable.slice", "kubepods.slice/kubepods-besteffort.slice",
	} {
		if err := os.MkdirAll(filepath.Join(n.root, dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) remove() error {
	n.mu.Lock()
	pods := n.pods
	n.pods = nil
	n.mu.Unlock()
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.remove())
	}
	n.outside.stop()
	return errors.Join(append(errs, n.network.close())...)
}

// Cgroup makes an empty cgroup below the machine's cgroup v2 mount, to be removed
// with all that is in it at the end of the test. It skips the test where there is
// no root or no cgroup v2.
func Cgroup(t TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("cgroups and network namespaces need root")
	}
	mount, err := cgroupMount()
	if err != nil {
		t.Skipf("this machine has no cgroup v2: %v", err)
	}
	dir := filepath.Join(mount, "sandbox-"+uuid.NewString())
	if err := register("cgroup", dir); err != nil {
		t.Fatalf("starting the janitor: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("making a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := removeCgroup(dir); err != nil {
			t.Errorf("removing cgroup %s: %v", dir, err)
		}
	})
	return dir
}

// cgroupMount is where the kernel shows cgroup v2 on this machine.
func cgroupMount() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", errors.New("none at /sys/fs/cgroup or /sys/fs/cgroup/unified")
}

// mountBPFFS mounts a BPF file system in a directory of its own.
func mountBPFFS(t TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandbox-bpffs-")
	if err != nil {
		t.Fatalf("making a mount point: %v", err)
	}
	if err := register("mount", dir); err != nil {
		t.Fatalf("starting the janitor: %v", err)
	}
	t.Cleanup(func() {
		if err := removeMount(dir); err != nil {
			t.Errorf("removing the BPF file system %s: %v", dir, err)
		}
	})
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mounting a BPF file system: %v", err)
	}
	return dir
}

// removeMount unmounts dir, where it is mounted, and removes it.
func removeMount(dir string) error {
	// MNT_DETACH: a process that is about to end may still have a file open.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// plain makes a name that can stand in a path of an arbitrary one.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '_'
		}
		return r
	}, name)
}
