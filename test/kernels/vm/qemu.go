// SPDX-License-Identifier: Apache-2.0

// Package vm has what it takes to boot kernels of Debian in QEMU without hardware
// support: the kernels, fetched from the mirror that the machine's apt knows and kept
// in the user's cache, a file system in memory, and QEMU's arguments.
package vm

import (
	"strconv"
	"strings"
)

// QEMU is the program (Debian: qemu-system-x86).
const QEMU = "qemu-system-x86_64"

// What a machine's CPUs can do.
const (
	// AllFeatures is what QEMU can emulate, but for what goes wrong: Linux 6.12 faults
	// where QEMU 7.2 emulates cmpxchg16b.
	AllFeatures = "max,la57=off,cx16=off"
	// FewFeatures is what costs the least time: no wide registers, which have to be
	// kept at each change of tasks, no checks of the kernel's accesses, no byte-wise
	// copies, which are only quick in hardware; but what random numbers and encryption
	// take.
	FewFeatures = "qemu64,cx16=off,rdrand=on,aes=on,pclmulqdq=on,ssse3=on,sse4.1=on,sse4.2=on,popcnt=on"
)

// Arguments are those of a machine with some CPUs of such features, and memory in MiB,
// which has no devices and boots a kernel with an initramfs and more arguments for it.
// It ends when the kernel does, however that happens.
func Arguments(k Kernel, initrd string, cpus int, features string, memory int, arguments string) []string {
	return []string{
		// With thread=multi kernels panicked now and then.
		"-accel", "tcg,thread=single", "-cpu", features, "-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.Image(), "-initrd", initrd,
		"-append", strings.TrimSpace("console=ttyS0 quiet panic=-1 " + arguments),
	}
}
