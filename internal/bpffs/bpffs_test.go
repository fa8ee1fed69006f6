// SPDX-License-Identifier: Apache-2.0

package bpffs

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	if err := Check(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("no directory:", err)
	}
	if err := Check(dir); !errors.Is(err, ErrNotBPFFS) {
		t.Error("another file system:", err)
	}
	if unix.Getuid() != 0 {
		t.Skip("mounting a BPF file system needs root")
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := Check(dir); err != nil {
		t.Error("a BPF file system:", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

// The next holder waits for the one before.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	first, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan time.Time, 1)
	time.AfterFunc(200*time.Millisecond, func() {
		closed <- time.Now()
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	})
	second, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if locked := time.Now(); locked.Before(<-closed) {
		t.Error("locked twice")
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
