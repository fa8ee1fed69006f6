// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// Initramfs writes an archive in the format "newc" of cpio, which the kernel unpacks
// as its first file system (Documentation/driver-api/early-userspace/buffer-format).
type Initramfs struct {
	w       *bufio.Writer
	inode   int
	written int64
	made    map[string]bool
}

// NewInitramfs begins an archive.
func NewInitramfs(w io.Writer) *Initramfs {
	return &Initramfs{w: bufio.NewWriterSize(w, 1<<20), made: map[string]bool{".": true, "/": true}}
}

const (
	typeDirectory = 0o040000
	typeDevice    = 0o020000
	typeFile      = 0o100000
)

func (a *Initramfs) header(name string, mode, size, major, minor int) error {
	a.inode++
	n, err := fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	a.written += int64(n)
	return a.pad(err)
}

// pad fills up to a multiple of 4 bytes.
func (a *Initramfs) pad(err error) error {
	if n := int(-a.written & 3); n > 0 && err == nil {
		n, err = a.w.Write(make([]byte, n))
		a.written += int64(n)
	}
	return err
}

// Directory makes a directory and those above it.
func (a *Initramfs) Directory(name string) error {
	if a.made[name] {
		return nil
	}
	if err := a.Directory(path.Dir(name)); err != nil {
		return err
	}
	a.made[name] = true
	return a.header(name, typeDirectory|0o755, 0, 0, 0)
}

// Console makes the device that process 1 writes to.
func (a *Initramfs) Console() error {
	if err := a.Directory("dev"); err != nil {
		return err
	}
	return a.header("dev/console", typeDevice|0o600, 0, 5, 1)
}

// Data makes a file.
func (a *Initramfs) Data(name string, mode fs.FileMode, content []byte) error {
	if err := a.Directory(path.Dir(name)); err != nil {
		return err
	}
	if err := a.header(name, typeFile|int(mode.Perm()), len(content), 0, 0); err != nil {
		return err
	}
	n, err := a.w.Write(content)
	a.written += int64(n)
	return a.pad(err)
}

// File copies a file from the host.
func (a *Initramfs) File(name string, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return a.Data(name, info.Mode(), content)
}

// Close completes the archive.
func (a *Initramfs) Close() error {
	if err := a.header("TRAILER!!!", 0, 0, 0, 0); err != nil {
		return err
	}
	return a.w.Flush()
}
