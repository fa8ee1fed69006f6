// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/podslots"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

// Program is a program of the agent: the values of the label program_type.
type Program string

// The programs.
const (
	SyscallCounter Program = "syscall_counter"
	L4Firewall     Program = "l4_firewall"
)

// ErrorType is what went wrong with a program: the values of the label
// error_type of the agent.
type ErrorType string

// What can go wrong; Meaning says what each is.
const (
	NoSlot        ErrorType = "no_slot"
	CgroupMissing ErrorType = "cgroup_missing"
	CgroupGone    ErrorType = "cgroup_gone"
	Permission    ErrorType = "permission"
	NoSpace       ErrorType = "no_space"
	NotSupported  ErrorType = "unsupported"
	Kernel        ErrorType = "kernel"
	Other         ErrorType = "other"
)

var meanings = map[ErrorType]string{
	NoSlot:        "every slot of the node is taken by another pod; one is given when it is free",
	CgroupMissing: "the pod runs, but has no cgroup below CGROUP_ROOT",
	CgroupGone:    "the pod's cgroup went while a program was attached",
	Permission:    "the kernel refuses: a capability is missing",
	NoSpace:       "a map of the kernel is full, or memory is short",
	NotSupported:  "the kernel lacks what the program needs",
	Kernel:        "the kernel refuses for another reason",
	Other:         "none of these",
}

// Meaning says in a few words what the type is.
func (t ErrorType) Meaning() string { return meanings[t] }

// ErrorTypes lists every ErrorType.
func ErrorTypes() []ErrorType {
	return []ErrorType{NoSlot, CgroupMissing, CgroupGone, Permission, NoSpace, NotSupported, Kernel, Other}
}

// failure is why a program does not serve a pod.
type failure struct {
	program Program
	why     ErrorType
	err     error
}

func newFailure(program Program, err error) *failure {
	return &failure{program: program, why: classify(err), err: err}
}

// same tells whether a failure says nothing that the other one did not.
func (f *failure) same(other *failure) bool {
	if f == nil || other == nil {
		return f == other
	}
	return f.why == other.why && f.err.Error() == other.err.Error()
}

func classify(err error) ErrorType {
	var full *podslots.FullError
	var unsupported *kernelfeature.Unsupported
	var cgroups *syscallcount.FullError
	var errno syscall.Errno
	switch {
	case errors.As(err, &full):
		return NoSlot
	case errors.As(err, &cgroups):
		return NoSpace
	case errors.As(err, &unsupported):
		return NotSupported
	case errors.Is(err, errNoCgroup):
		return CgroupMissing
	case errors.Is(err, fs.ErrNotExist):
		return CgroupGone
	case errors.Is(err, fs.ErrPermission):
		return Permission
	case errors.As(err, &errno):
		return classifyErrno(errno)
	default:
		return Other
	}
}

func classifyErrno(errno syscall.Errno) ErrorType {
	switch errno {
	case syscall.ENOMEM, syscall.E2BIG, syscall.ENOSPC:
		return NoSpace
	case syscall.ENODEV, syscall.ESTALE:
		return CgroupGone
	default:
		return Kernel
	}
}
