// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestByNumber(t *testing.T) {
	for name, tc := range map[string]struct {
		arch   string
		number int
		want   string
	}{
		"amd64":                         {"amd64", 257, "openat"},
		"arm64":                         {"arm64", 56, "openat"},
		"this machine's":                {runtime.GOARCH, unix.SYS_GETPID, "getpid"},
		"leading underscore":            {"amd64", 156, "_sysctl"},
		"marker is no call":             {"arm64", 244, ""},
		"number of no call":             {"amd64", -1, ""},
		"architecture without a table":  {"riscv64", 56, ""},
		"amd64 has calls arm64 has not": {"amd64", 2, "open"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ByNumber(tc.arch)[tc.number]; got != tc.want {
				t.Errorf("ByNumber(%q)[%d] = %q, want %q", tc.arch, tc.number, got, tc.want)
			}
		})
	}
}

func TestByNumberIsACopy(t *testing.T) {
	ByNumber("amd64")[0] = "changed"
	if got := ByNumber("amd64")[0]; got != "read" {
		t.Errorf("ByNumber(%q)[0] = %q after a caller changed its own, want %q", "amd64", got, "read")
	}
}

func TestNames(t *testing.T) {
	names := Names()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("Names() = %q, want them sorted and each once", names)
	}
	for name, want := range map[string]bool{
		"openat":                true, // of both
		"open":                  true, // of amd64 only
		"renameat2":             true,
		"arch_specific_syscall": false,
	} {
		if got := slices.Contains(names, name); got != want {
			t.Errorf("Names() contains %q: %v, want %v", name, got, want)
		}
	}
}
