// SPDX-License-Identifier: Apache-2.0

// Package bpffs looks after directories in a BPF file system, which hold pins: what
// stays in the kernel while no process holds it.
package bpffs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotBPFFS is the error of a directory that is not in a BPF file system.
var ErrNotBPFFS = errors.New("not in a BPF file system (mount -t bpf)")

// ErrLocked is the error of a directory that another process keeps locked.
var ErrLocked = errors.New("in use by another process")

// patience is how long Lock waits for a process that is about to end.
const patience = 10 * time.Second

// Check returns nil for a directory in a BPF file system, or an error that wraps
// ErrNotBPFFS or, where there is no such directory, fs.ErrNotExist.
func Check(dir string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if stat.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s: %w", dir, ErrNotBPFFS)
	}
	return nil
}

// Lock opens a directory and locks it against other callers of Lock. Closing the
// file, or the end of the process, unlocks it. Where another holds the lock for more
// than ten seconds the error wraps ErrLocked.
func Lock(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), file.Close())
}
