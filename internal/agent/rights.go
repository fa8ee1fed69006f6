// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// explainRights adds to what the kernel refused which capabilities the process
// lacks, where it lacks any: a verifier's refusal does not tell.
func explainRights(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !strings.Contains(err.Error(), "not permitted") && !strings.Contains(err.Error(), "permission denied") {
		return err
	}
	lacking := lackingCapabilities(effectiveCapabilities())
	if len(lacking) == 0 {
		return err
	}
	return fmt.Errorf("the agent lacks the capabilities %s; grant them to it (before Linux 5.11: SYS_ADMIN, NET_ADMIN and SYS_RESOURCE): %w", strings.Join(lacking, ", "), err)
}

// effectiveCapabilities has a bit for each; all are set where they cannot be
// read.
func effectiveCapabilities() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var held [2]unix.CapUserData
	if err := unix.Capget(&header, &held[0]); err != nil {
		return ^uint64(0)
	}
	return uint64(held[0].Effective) | uint64(held[1].Effective)<<32
}

// lackingCapabilities names what is missing of what programs need. SYS_ADMIN
// includes the two that Linux 5.8 took out of it.
func lackingCapabilities(effective uint64) []string {
	has := func(capability int) bool { return effective&(1<<capability) != 0 }
	var lacking []string
	for _, c := range []struct {
		name       string
		capability int
		included   bool
	}{
		{"BPF", unix.CAP_BPF, true},
		{"NET_ADMIN", unix.CAP_NET_ADMIN, false},
		{"PERFMON", unix.CAP_PERFMON, true},
	} {
		if !has(c.capability) && (!c.included || !has(unix.CAP_SYS_ADMIN)) {
			lacking = append(lacking, c.name)
		}
	}
	return lacking
}
