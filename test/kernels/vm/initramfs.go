// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
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
	return a.entry(name, mode, 0, 0, size, major, minor)
}

func (a *Initramfs) entry(name string, mode, user, group, size, major, minor int) error {
	a.inode++
	n, err := fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, user, group, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
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

// Tree copies a folder of the host's with all that is in it, its modes and owners.
// There may be directories, files and symbolic links.
func (a *Initramfs) Tree(name, from string) error {
	if err := a.Directory(path.Dir(name)); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, at)
		if err != nil {
			return err
		}
		var status unix.Stat_t
		if err := unix.Lstat(at, &status); err != nil {
			return fmt.Errorf("looking at %s: %w", at, err)
		}
		to := path.Join(name, relative)
		a.made[to] = entry.IsDir()
		content, err := contentOf(at, entry)
		if err != nil {
			return err
		}
		if err := a.entry(to, int(status.Mode), int(status.Uid), int(status.Gid), len(content), 0, 0); err != nil {
			return err
		}
		n, err := a.w.Write(content)
		a.written += int64(n)
		return a.pad(err)
	})
}

// contentOf is what an archive holds of a directory, a file or a symbolic link.
func contentOf(path string, entry fs.DirEntry) ([]byte, error) {
	switch entry.Type() {
	case fs.ModeDir:
		return nil, nil
	case 0:
		return os.ReadFile(path)
	case fs.ModeSymlink:
		to, err := os.Readlink(path)
		return []byte(to), err
	}
	return nil, fmt.Errorf("copying %s: it is neither a directory nor a file nor a symbolic link", path)
}

// Close completes the archive.
func (a *Initramfs) Close() error {
	if err := a.header("TRAILER!!!", 0, 0, 0, 0); err != nil {
		return err
	}
	return a.w.Flush()
}
