// SPDX-License-Identifier: Apache-2.0

package kernelfeature

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMissingCapabilities(t *testing.T) {
	set := func(capabilities ...int) (mask uint64) {
		for _, c := range capabilities {
			mask |= 1 << c
		}
		return mask
	}
	bpf, perfmon, net := unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN
	admin, resource := unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE
	counter, firewall := []int{bpf, perfmon}, []int{bpf, perfmon, net}
	for name, tc := range map[string]struct {
		held    uint64
		release string
		wanted  []int
		want    string
	}{
		"new, enough":             {set(bpf, perfmon), "6.18.44", counter, ""},
		"new, no PERFMON":         {set(bpf), "6.1.0-18-amd64", counter, "PERFMON"},
		"new, no BPF":             {set(perfmon), "5.15.0", counter, "BPF"},
		"new, SYS_ADMIN for both": {set(admin), "5.11.0", counter, ""},
		"5.10 limits memory":      {set(bpf, perfmon), "5.10.0-28-amd64", counter, "SYS_RESOURCE"},
		"5.10, enough":            {set(bpf, perfmon, resource), "5.10.0", counter, ""},
		"5.4, the new ones":       {set(bpf, perfmon), "5.4.0-150-generic", counter, "SYS_ADMIN SYS_RESOURCE"},
		"5.4, enough":             {set(admin, resource), "5.4.0", counter, ""},
		"firewall, enough":        {set(bpf, perfmon, net), "6.1.0", firewall, ""},
		"firewall, no NET_ADMIN":  {set(bpf, perfmon), "6.1.0", firewall, "NET_ADMIN"},
		"firewall, SYS_ADMIN":     {set(admin), "6.1.0", firewall, "NET_ADMIN"},
		"firewall, 5.4":           {set(bpf, perfmon), "5.4.0", firewall, "SYS_ADMIN NET_ADMIN SYS_RESOURCE"},
		"no release":              {0, "strange", counter, "BPF PERFMON"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(missing(tc.held, tc.release, tc.wanted...), " "); got != tc.want {
				t.Errorf("missing %q, want %q", got, tc.want)
			}
		})
	}
}
