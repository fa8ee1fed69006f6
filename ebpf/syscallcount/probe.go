// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

// Probe loads the programs and attaches them for a moment, with nothing watched, and
// leaves nothing behind. It returns nil, or a *kernelfeature.Unsupported.
func Probe() error {
	err := explain(probe())
	var known *kernelfeature.Unsupported
	if err == nil || errors.As(err, &known) {
		return err
	}
	return unsupported("the kernel refuses: "+err.Error(), "")
}

func probe() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	spec, err := loadSyscallcount()
	if err != nil {
		return err
	}
	loaded, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	defer loaded.Close()
	for program, tracepoint := range map[string]string{
		syscallcountProgSysEnterStub: "sys_enter",
		syscallcountProgInheritSlot:  "cgroup_mkdir",
		syscallcountProgForgetCgroup: "cgroup_rmdir",
	} {
		if err := probeTracepoint(loaded.Programs[program], tracepoint); err != nil {
			return err
		}
	}
	barrier, err := newFence()
	if err != nil {
		return err
	}
	return barrier.close()
}

func probeTracepoint(program *ebpf.Program, name string) error {
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: program})
	if errors.Is(err, fs.ErrNotExist) {
		return unsupported("the kernel has no tracepoint "+name,
			"use a kernel with CONFIG_FTRACE_SYSCALLS and CONFIG_CGROUPS")
	}
	if err != nil {
		return fmt.Errorf("attaching to the tracepoint %s: %w", name, err)
	}
	return attached.Close()
}

func unsupported(reason, remedy string) error {
	return &kernelfeature.Unsupported{Feature: kernelfeature.SyscallCounter, Reason: reason, Remedy: remedy}
}

// explain finds out what an error of loading or attaching means for the node: a
// *kernelfeature.Unsupported, or the error itself where it could be anything.
func explain(err error) error {
	var known *kernelfeature.Unsupported
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, unix.ENOSYS):
		return unsupported("the kernel has no system call bpf", "use a kernel with CONFIG_BPF_SYSCALL")
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return explainRights(err)
	}
	if _, btfErr := btf.LoadKernelSpec(); btfErr != nil {
		return unsupported("the kernel has no type information (BTF): "+btfErr.Error(),
			"use a kernel with CONFIG_DEBUG_INFO_BTF, which shows /sys/kernel/btf/vmlinux")
	}
	if errors.Is(features.HaveProgramType(ebpf.RawTracepoint), ebpf.ErrNotSupported) {
		return unsupported("the kernel has no BPF programs on raw tracepoints",
			"use Linux 5.4 or later with CONFIG_BPF_EVENTS")
	}
	return err
}

// explainRights says which capability the process lacks.
func explainRights(err error) error {
	missing, capErr := kernelfeature.MissingCapabilities(unix.CAP_BPF, unix.CAP_PERFMON)
	if capErr != nil {
		return errors.Join(err, capErr)
	}
	if len(missing) == 0 {
		return unsupported("the kernel refuses although the process has the capabilities: "+err.Error(),
			"look for a user namespace, a seccomp profile or the kernel's lockdown")
	}
	return unsupported("the process lacks the capability "+strings.Join(missing, " and "), "grant it to the agent")
}
