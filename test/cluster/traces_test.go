// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What is left is named: here it is a process of this test's own.
func TestTracesAreFound(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	command := exec.Command("/bin/sleep", "600")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	traces := &Traces{}
	err := errors.Join(traces.Path(dir), traces.Path("/proc"), traces.Process(command.Process.Pid), traces.Process(os.Getpid()))
	if err != nil {
		t.Error(err)
	}
	if noted := traces.Noted(); noted != (Noted{Processes: 2, Namespaces: 1}) {
		t.Errorf("noted %+v", noted)
	}
	if err = traces.Left(); err == nil {
		t.Fatal("nothing was found")
	}
	for _, want := range []string{dir + " is left", "the mount /proc is left", "process ", "the network namespace net:["} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if err := command.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = command.Wait()
	delete(traces.paths, "/proc")
	delete(traces.processes, os.Getpid())
	if err := os.Remove(dir); err != nil {
		t.Error(err)
	}
	awaitTrue(t, "nothing is left", func() bool { return traces.Left() == nil })
	if err := errors.Join(traces.Path(filepath.Join(dir, "none")), traces.Process(1<<30)); err == nil {
		t.Error("noted what is not there")
	}
}

// Others may take over what had a number or a name.
func TestTracesOfOthers(t *testing.T) {
	dir := t.TempDir()
	other, err := os.Lstat(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// All that runs began after that end.
	traces := &Traces{paths: map[string]os.FileInfo{dir: other}, processes: map[int]uint64{os.Getpid(): 1}, end: 1}
	if err := traces.Left(); err != nil {
		t.Errorf("found what others have: %v", err)
	}
	if !traces.later(fmt.Sprintf("/proc/%d/ns/net", os.Getpid())) || traces.later("/proc/self/fd/1") {
		t.Error("who holds a namespace is mistaken")
	}
}
