// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// inUserNamespace marks the test's own process, in which the limits hold.
const inUserNamespace = "PODCGROUP_TEST_LIMITS"

// The kernel's limits are told with their remedy. They are met in a user namespace
// that has lower ones, so that nobody else on the machine meets them.
func TestTreeLimits(t *testing.T) {
	if os.Getenv(inUserNamespace) == "" {
		if os.Geteuid() != 0 {
			t.Skip("a user namespace with limits of its own needs root")
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestTreeLimits$", "-test.v")
		cmd.Env = append(os.Environ(), inUserNamespace+"=1")
		mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestTreeLimits") {
			t.Errorf("in a user namespace: %v\n%s", err, out)
		}
		return
	}
	set := func(limit, value string) {
		if err := os.WriteFile("/proc/sys/user/"+limit, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	mkdir(t, dir, "kubepods", "burstable")
	set("max_inotify_instances", "1")
	set("max_inotify_watches", "2")
	tree, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "fs.inotify.max_user_instances") {
		t.Errorf("one instance too many: %v", err)
	}
	err = tree.Run(context.Background(), func(Event) {})
	if err == nil || !strings.Contains(err.Error(), "fs.inotify.max_user_watches") || !strings.Contains(err.Error(), "burstable") {
		t.Errorf("one watch too many: %v", err)
	}
}
