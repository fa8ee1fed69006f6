// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFindRoot(t *testing.T) {
	const root = "20 1 8:1 / / rw - ext4 /dev/sda rw\n25 20 0:22 / /sys rw,nosuid - sysfs sysfs rw\n"
	for name, tc := range map[string]struct{ mountinfo, want string }{
		"pure": {root + "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		"hybrid": {root + "31 25 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
			"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		"elsewhere": {root + "50 20 0:26 / /run/cgroup2 rw - cgroup2 none rw\n", "/run/cgroup2"},
		"the usual place goes first": {root + "29 20 0:26 / /run/cilium/cgroupv2 rw - cgroup2 none rw\n" +
			"30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		"only cgroup v1": {root + "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", ""},
		"empty":          {"", ""},
		"a container's own, and the node's": {root + "30 25 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n" +
			"44 20 0:26 /../../../.. /host/cgroup ro - cgroup2 cgroup rw\n", "/host/cgroup"},
		"the node's over the container's own": {root + "30 25 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n" +
			"44 30 0:26 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "/sys/fs/cgroup"},
		"part of it only": {root + "30 25 0:26 /kubepods/burstable /sys/fs/cgroup ro - cgroup2 cgroup rw\n", ""},
		"hidden by another file system": {root + "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n44 30 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
			"45 20 0:26 / /mnt/cg rw - cgroup2 cgroup2 rw\n", "/mnt/cg"},
		"hidden by a mount above": {root + "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n44 25 0:30 / /sys/fs rw - tmpfs tmpfs rw\n", ""},
		// The kernel lists by age, and an initramfs mounts /sys before there is a root.
		"listed before what it stands on": {"30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n" + root, "/sys/fs/cgroup"},
		"spaces":                          {root + "30 20 0:26 / /run/my\\040cgroup rw - cgroup2 none rw\n", "/run/my cgroup"},
		"siblings with a common beginning": {root + "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n" +
			"31 25 0:30 / /sys/fs/cg rw - tmpfs tmpfs rw\n", "/sys/fs/cgroup"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FindRoot(strings.NewReader(tc.mountinfo))
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("FindRoot = %q, %v, want %q", got, err, tc.want)
			}
			if tc.want == "" && !errors.Is(err, ErrNoCgroup2) {
				t.Errorf("error %v, want ErrNoCgroup2", err)
			}
		})
	}
	for _, broken := range []string{"nonsense\n", "a 1 0:1 / / rw - cgroup2 x rw\n", "1 b 0:1 / / rw - cgroup2 x rw\n", "1 2 0:1 / / rw\n", "1 2 3 - x\n"} {
		if got, err := FindRoot(strings.NewReader(broken)); err == nil || errors.Is(err, ErrNoCgroup2) {
			t.Errorf("FindRoot(%q) = %q, %v, want an error about the line", broken, got, err)
		}
	}
}

// This machine's own is found.
func TestFindRootHere(t *testing.T) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := FindRoot(f)
	if errors.Is(err, ErrNoCgroup2) {
		t.Skip("this machine has no cgroup v2")
	}
	var st unix.Statfs_t
	if err != nil || unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Errorf("FindRoot = %q, %v, of type %#x", root, err, st.Type)
	}
}

func FuzzFindRoot(f *testing.F) {
	f.Add("30 25 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n25 30 0:26 / / rw - cgroup2 cgroup2 rw\n")
	f.Add("1 1 0:1 / /a\\040b rw - cgroup2 x\n")
	f.Fuzz(func(t *testing.T, mountinfo string) {
		root, err := FindRoot(strings.NewReader(mountinfo))
		if err == nil && (root == "" || !strings.Contains(mountinfo, "cgroup2")) {
			t.Errorf("FindRoot(%q) = %q", mountinfo, root)
		}
		if err != nil && root != "" {
			t.Errorf("FindRoot(%q) = %q, %v", mountinfo, root, err)
		}
	})
}
