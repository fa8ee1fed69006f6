// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// standIn is a make that has one target that fails, and some that run until they are told
// to end, when they clean up; each has e2e.sh interrupted by another signal.
const standIn = `#!/bin/bash
echo "made $2"
interrupt() {
	trap 'kill $!; echo "cleaned up"; exit 2' TERM
	kill "$1" $PPID
	sleep 60 &
	wait
}
case $2 in
bad) exit 2 ;;
terminated) interrupt -TERM ;;
hung-up) interrupt -HUP ;;
pressed) interrupt -INT ;;
esac
`

// endToEnd is hack/e2e.sh with a make that does as its target says, on a machine that has
// little besides.
func endToEnd(t *testing.T, targets ...string) *exec.Cmd {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"bash", "dirname", "sleep", "uname"} {
		path, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "make"), []byte(standIn), 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(filepath.Join(root, "hack", "e2e.sh"), targets...)
	command.Env = []string{"PATH=" + dir}
	return command
}

// All targets of `make e2e` are made, and told of with their results.
func TestEndToEndTargets(t *testing.T) {
	for name, tc := range map[string]struct {
		targets   []string
		code      int
		want, not []string
	}{
		"all is well": {[]string{"one", "two"}, 0,
			[]string{"===== make one\nmade one\n", "===== Summary (0:0", "one                  0:0", "two                  0:0", "  ok\n"}, []string{"FAILED"}},
		"what fails does not keep the rest from it":  {[]string{"bad", "two"}, 1, []string{"made two", "  FAILED\n", "  ok\n"}, nil},
		"a target that runs cleans up after SIGTERM": {[]string{"terminated", "two"}, 130, []string{"made terminated", "cleaned up\n", "  FAILED\n"}, []string{"two"}},
		"after SIGHUP": {[]string{"hung-up", "two"}, 130, []string{"made hung-up", "cleaned up\n"}, []string{"two"}},
		"after SIGINT": {[]string{"pressed", "two"}, 130, []string{"made pressed", "cleaned up\n"}, []string{"two"}},
		"without QEMU": {[]string{"test-virtual-node", "two"}, 0,
			[]string{"test-virtual-node    0:00  skipped: there is no qemu-system-x86_64: apt-get install", "made two"}, []string{"made test-virtual-node"}},
	} {
		t.Run(name, func(t *testing.T) {
			command := endToEnd(t, tc.targets...)
			command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			said, err := command.CombinedOutput()
			if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
				t.Fatal(err)
			}
			if got := command.ProcessState.ExitCode(); got != tc.code {
				t.Errorf("code %d, not %d", got, tc.code)
			}
			for _, text := range tc.want {
				if !strings.Contains(string(said), text) {
					t.Errorf("%q is not in:\n%s", text, said)
				}
			}
			for _, text := range tc.not {
				if strings.Contains(string(said), text) {
					t.Errorf("%q is in:\n%s", text, said)
				}
			}
		})
	}
}
