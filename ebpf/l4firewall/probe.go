// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/internal/kernelfeature"
)

// Probe loads the programs that filter packets, and lets the kernel try a link
// that cannot be. Before Linux 5.10 it tries nothing. It returns nil or a
// *kernelfeature.Unsupported, and leaves nothing.
func Probe() error {
	return probe(kernelfeature.L4Firewall, "use Linux 5.10 or newer with CONFIG_CGROUP_BPF", ingress, egress)
}

// ProbeConnectDenied does the same with the programs that deny connections at
// once. Without them the firewall drops the connections' packets.
func ProbeConnectDenied() error {
	return probe(kernelfeature.ConnectDenied, "use Linux 5.10 or newer with CONFIG_CGROUP_BPF and CONFIG_INET", connect4, connect6)
}

// What the firewall stands on has come bit by bit; 5.10 is the oldest kernel on which
// all of it is there and tested.
const oldestMajor, oldestMinor = 5, 10

// TooOld returns nil, or a *kernelfeature.Unsupported: why a kernel of that release
// cannot serve the feature.
func TooOld(feature, release string) error {
	if !kernelfeature.OlderThan(release, oldestMajor, oldestMinor) {
		return nil
	}
	return &kernelfeature.Unsupported{
		Feature: feature,
		Reason: "Linux " + release + " is too old: its rules could not outlive an agent, for which programs need links to cgroups (5.7)" +
			" and a cgroup storage that the next agent's programs can share (5.9)",
		Remedy: fmt.Sprintf("use Linux %d.%d or newer", oldestMajor, oldestMinor),
	}
}

func probe(feature, remedy string, which ...hook) error {
	release, err := kernelfeature.Release()
	if err != nil {
		return &kernelfeature.Unsupported{Feature: feature, Reason: err.Error(), Remedy: remedy}
	}
	// First: no capability would help.
	if err := TooOld(feature, release); err != nil {
		return err
	}
	err = tryPrograms(which)
	if err == nil {
		return nil
	}
	reason := err.Error()
	// The verifier says EACCES to what it allows only with PERFMON.
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		missing, capErr := kernelfeature.MissingCapabilities(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN)
		switch {
		case capErr != nil:
			reason = errors.Join(err, capErr).Error()
		case len(missing) > 0:
			reason = "the process lacks the capability " + strings.Join(missing, " and ")
			remedy = "grant it to the agent"
		}
	}
	return &kernelfeature.Unsupported{Feature: feature, Reason: reason, Remedy: remedy}
}

func tryPrograms(which []hook) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lifting the limit of locked memory: %w", err)
	}
	spec, err := current.load()
	if err != nil {
		return fmt.Errorf("reading the programs: %w", err)
	}
	for _, name := range []string{"blocked", "syns"} {
		spec.Maps[name].MaxEntries = 1024 // With one the kernel gives each CPU none.
	}
	programs, err := loadPrograms(spec, nil, which...)
	if err != nil {
		return err
	}
	for _, h := range which {
		defer programs[h].Close()
	}
	return tryLink(programs[which[0]], hookTypes[which[0]])
}

// tryLink asks for a link to what is no cgroup: where the kernel has links of
// cgroups, that is what it finds wrong.
func tryLink(program *ebpf.Program, attach ebpf.AttachType) error {
	file, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(file.Fd()), Program: program, Attach: attach})
	if err == nil {
		return errors.Join(errors.New("the kernel attached a program to a file"), l.Close())
	}
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	return fmt.Errorf("linking programs to cgroups: %w", err)
}
