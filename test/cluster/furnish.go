// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where a machine sees its own subtree of cgroup v2.
const cgroupRoot = "/sys/fs/cgroup"

// spec says how a machine is furnished. All paths but the keys of Folders are the
// host's.
type spec struct {
	Name string
	// Root is an empty folder: the mount point of the machine's root.
	Root string
	// Folders are bound into the machine, by their places there.
	Folders map[string]folder
	// Node gives it what a kubelet needs: cgroup v2, a BPF file system, tracefs.
	Node bool
	// Environ is what programs get besides PATH and HOME.
	Environ []string
}

// folder is one that a machine shares with the host.
type folder struct {
	Source   string
	ReadOnly bool
}

// tunables are what a kubelet sets in the whole kernel, unless they are so already.
// It sees files with these values instead, so that the host keeps its own.
var tunables = map[string]string{
	"vm/overcommit_memory":     "1",
	"vm/panic_on_oom":          "0",
	"kernel/panic":             "10",
	"kernel/panic_on_oops":     "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

const (
	pretended = "/etc/pretended"
	// unreadable lies over a file that is not to be read: a socket cannot be opened.
	unreadable = pretended + "/unreadable"
)

// furnish gives this process, and all that it starts, a file system of the machine's
// own: the host's programs and devices, and nothing else of the host that could be
// written to.
func (s *spec) furnish() error {
	// Nothing that is mounted here may appear on the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leaving the host's mounts: %w", err)
	}
	if err := mount("tmpfs", s.Root, "tmpfs", "mode=755"); err != nil {
		return err
	}
	if err := errors.Join(s.bindSystem(), s.bindFolders(), s.writeEtc()); err != nil {
		return err
	}
	if err := pivot(s.Root); err != nil {
		return err
	}
	// kubelet passes mounts on to pods.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing mounts: %w", err)
	}
	if err := mountKernel(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("naming the machine: %w", err)
	}
	if err := writeSysctls(); err != nil || !s.Node {
		return err
	}
	return furnishNode()
}

// bindSystem shows the machine the host's programs and libraries, to read, and its
// devices.
func (s *spec) bindSystem() error {
	for _, name := range []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		path := "/" + name
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, filepath.Join(s.Root, name)); err != nil {
				return err
			}
		default:
			if err := bind(path, filepath.Join(s.Root, name), true); err != nil {
				return err
			}
		}
	}
	return bind("/dev", filepath.Join(s.Root, "dev"), false)
}

func (s *spec) bindFolders() error {
	// Sorted: one may lie in another.
	for _, place := range slices.Sorted(maps.Keys(s.Folders)) {
		if err := bind(s.Folders[place].Source, filepath.Join(s.Root, place), s.Folders[place].ReadOnly); err != nil {
			return err
		}
	}
	for _, dir := range []string{"proc", "sys", "run", "tmp", "root", "opt"} {
		if err := os.MkdirAll(filepath.Join(s.Root, dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// writeEtc makes /etc. Its resolv.conf, which pods on the host's network get, names
// nobody: the nodes themselves have no DNS.
func (s *spec) writeEtc() error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		release = []byte("ID=linux\n")
	}
	for name, text := range map[string]string{
		"hostname":    s.Name + "\n",
		"hosts":       "127.0.0.1 localhost " + s.Name + "\n::1 localhost\n",
		"resolv.conf": "options timeout:1 attempts:1\n",
		"passwd":      "root:x:0:0:root:/root:/bin/sh\n",
		"group":       "root:x:0:\n",
		"machine-id":  hex.EncodeToString(id) + "\n",
		"os-release":  string(release),
	} {
		path := filepath.Join(s.Root, "etc", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bind shows source, and what is mounted below it, at target.
func bind(source, target string, readOnly bool) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	attributes := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, attributes); err != nil {
		return fmt.Errorf("making %s read-only: %w", target, err)
	}
	return nil
}

// pivot makes root the root of the mount namespace, and lets go of the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// The old root comes to lie upon the new one (pivot_root(2), NOTES).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the old root: %w", err)
	}
	return unix.Chdir("/")
}

// mountKernel mounts what shows the kernel as the machine's namespaces have it.
func mountKernel() error {
	for _, m := range []struct{ kind, target, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := mount(m.kind, m.target, m.kind, m.data); err != nil {
			return err
		}
	}
	return nil
}

func furnishNode() error {
	for _, m := range []struct{ kind, target string }{
		{"cgroup2", cgroupRoot},
		{"bpf", "/sys/fs/bpf"},
		{"tracefs", "/sys/kernel/tracing"},
	} {
		if err := mount(m.kind, m.target, m.kind, ""); err != nil {
			return err
		}
	}
	// No process may be in the root, or kubelet could pass no controllers on.
	cgroup, err := systemCgroup("init")
	if err != nil {
		return err
	}
	if err := errors.Join(moveTo(cgroup.Name()), cgroup.Close()); err != nil {
		return fmt.Errorf("leaving the root cgroup: %w", err)
	}
	for name, value := range tunables {
		if err := pretend("/proc/sys/"+name, value); err != nil {
			return err
		}
	}
	if err := unix.Mknod(unreadable, unix.S_IFSOCK|0o600, 0); err != nil {
		return fmt.Errorf("making %s: %w", unreadable, err)
	}
	// A machine that is started again was booted again.
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	text := hex.EncodeToString(id)
	return pretend("/proc/sys/kernel/random/boot_id", strings.Join([]string{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, "-"))
}

// pretend has a file of the kernel's say something else in this machine.
func pretend(path, value string) error {
	instead := filepath.Join(pretended, strings.ReplaceAll(path, "/", "_"))
	if err := os.MkdirAll(filepath.Dir(instead), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(instead, []byte(value+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(instead, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("covering %s: %w", path, err)
	}
	return nil
}

// writeSysctls makes a router of the machine's network namespace.
func writeSysctls() error {
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"} {
		if err := os.WriteFile("/proc/sys/"+name, []byte("1"), 0); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, 0, data); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", kind, target, err)
	}
	return nil
}
