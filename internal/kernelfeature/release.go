// SPDX-License-Identifier: Apache-2.0

package kernelfeature

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Release returns the release of the kernel that runs, such as "5.10.0-28-amd64".
func Release() (string, error) {
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return "", fmt.Errorf("reading the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(kernel.Release[:]), nil
}

// OlderThan tells whether a release is before a version of Linux. What is no release
// of Linux is taken for the newest.
func OlderThan(release string, major, minor int) bool {
	var m, n int
	if _, err := fmt.Sscanf(release, "%d.%d", &m, &n); err != nil {
		return false
	}
	return m < major || m == major && n < minor
}
