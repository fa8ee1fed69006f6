// SPDX-License-Identifier: Apache-2.0

package kernelfeature

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MissingCapabilities returns the names, without CAP_, of what this process needs for
// BPF programs on this kernel, and does not have. wanted are of CAP_BPF, CAP_PERFMON
// and CAP_NET_ADMIN; on older kernels others stand for them, or are needed besides.
func MissingCapabilities(wanted ...int) ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var held [2]unix.CapUserData
	if err := unix.Capget(&header, &held[0]); err != nil {
		return nil, fmt.Errorf("reading the process's capabilities: %w", err)
	}
	release, err := Release()
	if err != nil {
		return nil, err
	}
	effective := uint64(held[0].Effective) | uint64(held[1].Effective)<<32
	return missing(effective, release, wanted...), nil
}

// missing is MissingCapabilities of a process with such a set, on a kernel of such a
// release ("5.10.0-28-amd64").
func missing(effective uint64, release string, wanted ...int) []string {
	before := func(major, minor int) bool { return OlderThan(release, major, minor) }
	has := func(capability int) bool { return effective&(1<<capability) != 0 }
	var names []string
	if before(5, 8) && !has(unix.CAP_SYS_ADMIN) {
		names = append(names, "SYS_ADMIN")
	}
	for _, capability := range wanted {
		name := map[int]string{unix.CAP_BPF: "BPF", unix.CAP_PERFMON: "PERFMON", unix.CAP_NET_ADMIN: "NET_ADMIN"}[capability]
		// SYS_ADMIN stands for the two that Linux 5.8 split off from it.
		split := capability != unix.CAP_NET_ADMIN
		if !has(capability) && (!split || !before(5, 8) && !has(unix.CAP_SYS_ADMIN)) {
			names = append(names, name)
		}
	}
	// BPF memory counted against RLIMIT_MEMLOCK, which has to be lifted.
	if before(5, 11) && !has(unix.CAP_SYS_RESOURCE) {
		names = append(names, "SYS_RESOURCE")
	}
	return names
}
