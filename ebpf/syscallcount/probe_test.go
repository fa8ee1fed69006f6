// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

func TestProbe(t *testing.T) {
	if err := Probe(); err != nil {
		t.Error(err)
	}
}

// withCapabilities runs the command with no others than the given capabilities, in a
// mount namespace of its own, and returns what it wrote to standard error.
func withCapabilities(t *testing.T, cmd *exec.Cmd, keep ...int) (string, error) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and with it
		// what was changed of it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		for c := range 64 {
			if slices.Contains(keep, c) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); errors.Is(err, unix.EINVAL) {
				break // the last capability
			} else if err != nil {
				done <- err
				return
			}
		}
		done <- cmd.Run()
	}()
	err := <-done
	return stderr.String(), err
}

func TestProbeCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving a process capabilities needs root")
	}
	for name, tc := range map[string]struct {
		keep []int
		want string // "" for no error
	}{
		"what the agent has": {[]int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}, ""},
		"just enough":        {[]int{unix.CAP_BPF, unix.CAP_PERFMON}, ""},
		"the old way":        {[]int{unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE}, ""},
		"without BPF":        {[]int{unix.CAP_PERFMON, unix.CAP_NET_ADMIN}, "lacks the capability BPF;"},
		"without PERFMON":    {[]int{unix.CAP_BPF, unix.CAP_NET_ADMIN}, "lacks the capability PERFMON;"},
		"without any":        {nil, "lacks the capability BPF and PERFMON;"},
	} {
		t.Run(name, func(t *testing.T) {
			said, err := withCapabilities(t, command("probe"), tc.keep...)
			if (err == nil) != (tc.want == "") || !strings.Contains(said, tc.want) {
				t.Errorf("%v, %q; want %q", err, said, tc.want)
			}
			if tc.want != "" && !strings.HasPrefix(said, "SyscallCounter is not supported on this node: ") {
				t.Errorf("not a kernelfeature.Unsupported: %q", said)
			}
		})
	}
}

// The agent needs BPF and PERFMON for all that it does, and no more.
func TestLeastPrivilege(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	cmd := command("crash", dir, "1", "16", "0", pods)
	if said, err := withCapabilities(t, cmd, unix.CAP_BPF, unix.CAP_PERFMON); err != nil {
		t.Errorf("%v: %s", err, said)
	}
	if left, err := os.ReadDir(filepath.Join(dir, pinDir)); err != nil || len(left) != 1 {
		t.Errorf("pins: %v (%v), want one store", left, err)
	}
}

// hideBTF is Probe where the kernel shows no BTF.
func hideBTF([]string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
		return err
	}
	return Probe()
}

func TestProbeWithoutBTF(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("hiding the kernel's BTF needs root")
	}
	var said bytes.Buffer
	cmd := command("hide BTF")
	cmd.Stderr = &said
	err := cmd.Run()
	if err == nil || !strings.Contains(said.String(), "no type information (BTF)") {
		t.Errorf("%v, %q", err, said.String())
	}
}

func TestExplain(t *testing.T) {
	unknown := errors.New("something else")
	for name, tc := range map[string]struct {
		err  error
		want string // of the reason; "" for the error itself
	}{
		"no system call bpf": {fmt.Errorf("creating a map: %w", unix.ENOSYS), "no system call bpf"},
		"refused":            {fmt.Errorf("creating a map: %w", unix.EPERM), "although the process has the capabilities"},
		"anything":           {unknown, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got *kernelfeature.Unsupported
			err := explain(tc.err)
			if ok := errors.As(err, &got); ok != (tc.want != "") {
				t.Fatal(err)
			}
			if tc.want == "" {
				if !errors.Is(err, unknown) {
					t.Error(err)
				}
				return
			}
			if !strings.Contains(got.Reason, tc.want) || got.Remedy == "" || got.Feature != "SyscallCounter" {
				t.Errorf("%+v, want %q", got, tc.want)
			}
		})
	}
}
