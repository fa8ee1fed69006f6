// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
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
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var held [2]unix.CapUserData
	if capErr := unix.Capget(&header, &held[0]); capErr != nil {
		return errors.Join(err, capErr)
	}
	effective := uint64(held[0].Effective) | uint64(held[1].Effective)<<32
	var kernel unix.Utsname
	if unameErr := unix.Uname(&kernel); unameErr != nil {
		return errors.Join(err, unameErr)
	}
	missing := missingCapabilities(effective, unix.ByteSliceToString(kernel.Release[:]))
	if len(missing) == 0 {
		return unsupported("the kernel refuses although the process has the capabilities: "+err.Error(),
			"look for a user namespace, a seccomp profile or the kernel's lockdown")
	}
	return unsupported("the process lacks the capability "+strings.Join(missing, " and "), "grant it to the agent")
}

// missingCapabilities returns the names of what is needed, but not in effective, on a
// kernel of that release, such as "5.10.0-28-amd64".
func missingCapabilities(effective uint64, release string) []string {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		// Not a release of Linux: as for the newest.
		major = math.MaxInt
	}
	before := func(m, n int) bool { return major < m || major == m && minor < n }
	has := func(capability int) bool { return effective&(1<<capability) != 0 }
	var missing []string
	need := func(capability int, name string) {
		if !has(capability) {
			missing = append(missing, name)
		}
	}
	switch {
	case before(5, 8):
		need(unix.CAP_SYS_ADMIN, "SYS_ADMIN")
	case !has(unix.CAP_SYS_ADMIN):
		need(unix.CAP_BPF, "BPF")
		need(unix.CAP_PERFMON, "PERFMON")
	}
	if before(5, 11) {
		// BPF memory counts against RLIMIT_MEMLOCK, which has to be lifted.
		need(unix.CAP_SYS_RESOURCE, "SYS_RESOURCE")
	}
	return missing
}
