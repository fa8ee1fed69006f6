// SPDX-License-Identifier: Apache-2.0

// Package syscalls knows the names and numbers of Linux system calls. Its
// tables are those of golang.org/x/sys/unix; numbers are those that the kernel
// sees of 64-bit processes. A kernel newer than the tables may know more calls.
package syscalls

import (
	"maps"
	"slices"
)

var byArch = map[string]map[int]string{"amd64": amd64, "arm64": arm64}

// ByNumber returns the names of an architecture's system calls by number. The
// architecture is named as in runtime.GOARCH; an unknown one has none.
func ByNumber(arch string) map[int]string { return maps.Clone(byArch[arch]) }

// Names returns the names of all system calls of all architectures, sorted,
// each once.
func Names() []string {
	names := map[string]bool{}
	for _, table := range byArch {
		for _, name := range table {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
