// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// ID returns the id that the kernel gives a cgroup v2 directory, as eBPF programs
// see it. (Its inode number is only one half of it before Linux 5.5.)
func ID(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("looking at cgroup %s: %w", path, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("%s is not in a cgroup v2 file system", path)
	}
	return KnownID(path)
}

// KnownID is ID of what is known to be a directory of cgroup v2, at half the cost.
func KnownID(path string) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return 0, fmt.Errorf("getting the id of cgroup %s: %w", path, err)
	}
	if handle.Size() != 8 {
		return 0, fmt.Errorf("getting the id of cgroup %s: the file handle has %d bytes, not 8", path, handle.Size())
	}
	return binary.NativeEndian.Uint64(handle.Bytes()), nil
}
