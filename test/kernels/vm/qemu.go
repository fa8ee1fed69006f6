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

// Arguments are those of a machine with some CPUs, and memory in MiB, which has no
// devices and boots a kernel with an initramfs and more arguments for it. It ends when
// the kernel does, however that happens.
func Arguments(k Kernel, initrd string, cpus, memory int, arguments string) []string {
	return []string{
		// With thread=multi kernels panicked now and then, and Linux 6.12 faults
		// where QEMU 7.2 emulates cmpxchg16b.
		"-accel", "tcg,thread=single", "-cpu", "max,la57=off,cx16=off", "-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.Image(), "-initrd", initrd,
		"-append", strings.TrimSpace("console=ttyS0 quiet panic=-1 " + arguments),
	}
}
