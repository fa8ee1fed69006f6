// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/l4firewall"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/podslots"
	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount"
	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// What a trial is told: the capabilities to keep, and where to pin and attach.
const (
	capabilitiesVariable = "GUEST_CAPABILITIES"
	pinsVariable         = "GUEST_PINS"
	cgroupVariable       = "GUEST_CGROUP"
)

var capabilityNumbers = map[string]int{
	"BPF": unix.CAP_BPF, "PERFMON": unix.CAP_PERFMON, "NET_ADMIN": unix.CAP_NET_ADMIN,
	"SYS_ADMIN": unix.CAP_SYS_ADMIN, "SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
}

// runTrial tries the features in a process with no other capabilities: as root,
// as the agent's container is.
func runTrial(capabilities []string) (*wire.Trial, error) {
	cgroup, err := os.MkdirTemp("/sys/fs/cgroup", "trial-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(cgroup)
	pins, err := os.MkdirTemp("/sys/fs/bpf", "trial-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(pins)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{
		"PATH=/", "HOME=/tmp", stage + "=" + stageDrop, capabilitiesVariable + "=" + strings.Join(capabilities, ","),
		pinsVariable + "=" + pins, cgroupVariable + "=" + cgroup,
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	trial := &wire.Trial{Capabilities: capabilities}
	if err := json.Unmarshal(out, &trial.Features); err != nil {
		return nil, fmt.Errorf("reading %q: %w", out, err)
	}
	return trial, nil
}

// drop bounds the capabilities of what it then becomes.
func drop() error {
	runtime.LockOSThread()
	var keep []int
	for _, name := range strings.Split(os.Getenv(capabilitiesVariable), ",") {
		if number, ok := capabilityNumbers[name]; ok {
			keep = append(keep, number)
		}
	}
	for c := range 64 {
		if slices.Contains(keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // The kernel has no more of them.
		}
		if err != nil {
			return fmt.Errorf("giving up capability %d: %w", c, err)
		}
	}
	if err := os.Setenv(stage, stageTry); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", []string{"guest"}, os.Environ())
}

// try probes the features, uses them where the probe says that they can be, and
// prints what became of each.
func try() error {
	dir, cgroup := os.Getenv(pinsVariable), os.Getenv(cgroupVariable)
	outcomes := map[string]wire.Outcome{
		kernelfeature.SyscallCounter: outcome(syscallcount.Probe(), func() error { return useCounter(dir, cgroup) }),
		kernelfeature.L4Firewall:     outcome(l4firewall.Probe(), func() error { return useFirewall(dir, cgroup) }),
		// What it is good for is tested with the firewall.
		kernelfeature.ConnectDenied: outcome(l4firewall.ProbeConnectDenied(), func() error { return nil }),
	}
	return json.NewEncoder(os.Stdout).Encode(outcomes)
}

// outcome holds a probe's word against the use of the feature.
func outcome(probed error, use func() error) wire.Outcome {
	var unsupported *kernelfeature.Unsupported
	if probed == nil {
		if err := use(); err != nil {
			return wire.Outcome{Wrong: "the probe finds nothing wrong, but: " + err.Error()}
		}
		return wire.Outcome{}
	}
	if !errors.As(probed, &unsupported) {
		return wire.Outcome{Wrong: fmt.Sprintf("not a *kernelfeature.Unsupported: %v", probed)}
	}
	return wire.Outcome{Unsupported: unsupported.Error()}
}

const trialUID = types.UID("6d1f2b8e-3f0a-4a57-9d7e-5b0c1f2a3d4e")

// useCounter watches a cgroup, restarts, and removes all.
func useCounter(dir, cgroup string) (err error) {
	slots, err := podslots.Open(dir, 16)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slots.Close(), podslots.Remove(dir), empty(dir)) }()
	slot, err := slots.Take(trialUID)
	if err != nil {
		return err
	}
	for range 2 {
		counter, err := syscallcount.Open(syscallcount.Options{Dir: dir, Slots: 16})
		if err != nil {
			return err
		}
		err = counter.Watch(slot, cgroup, syscallcount.Settings{PerPID: true})
		if err == nil {
			err = counter.Read(func(uint32, *[syscallcount.Numbers]uint64) {})
		}
		if err = errors.Join(err, counter.Close()); err != nil {
			return err
		}
	}
	return syscallcount.Remove(dir)
}

// useFirewall attaches to a cgroup, restarts, and removes all.
func useFirewall(dir, cgroup string) (err error) {
	defer func() { err = errors.Join(err, l4firewall.Remove(dir), empty(dir)) }()
	target := l4firewall.Target{UID: trialUID, Cgroup: cgroup}
	for _, port := range []uint16{1, 2} {
		firewall, err := l4firewall.Open(l4firewall.Options{Dir: dir, Slots: 16})
		if err != nil {
			return err
		}
		rules := l4firewall.Rules{Blocked: []uint16{port}, Ingress: true, Egress: true}
		target.Policy = l4firewall.Compile([]l4firewall.Rules{rules}, nil)
		err = firewall.Attach(target)
		if err == nil {
			err = firewall.Read(func(uint32, l4firewall.Counters) {})
		}
		if err = errors.Join(err, firewall.Close()); err != nil {
			return err
		}
	}
	return nil
}

// empty returns an error where pins are left.
func empty(dir string) error {
	left, err := filepath.Glob(dir + "/*")
	if err == nil && len(left) != 0 {
		err = fmt.Errorf("pins are left: %v", left)
	}
	return err
}
