// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// initramfs writes an archive in the format "newc" of cpio, which the kernel unpacks
// as its first file system (Documentation/driver-api/early-userspace/buffer-format).
type initramfs struct {
	w       *bufio.Writer
	inode   int
	written int64
	made    map[string]bool
}

func newInitramfs(w io.Writer) *initramfs {
	return &initramfs{w: bufio.NewWriterSize(w, 1<<20), made: map[string]bool{".": true, "/": true}}
}

const (
	typeDirectory = 0o040000
	typeDevice    = 0o020000
	typeFile      = 0o100000
)

func (a *initramfs) header(name string, mode, size, major, minor int) error {
	a.inode++
	n, err := fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	a.written += int64(n)
	return a.pad(err)
}

// pad fills up to a multiple of 4 bytes.
func (a *initramfs) pad(err error) error {
	if n := int(-a.written & 3); n > 0 && err == nil {
		n, err = a.w.Write(make([]byte, n))
		a.written += int64(n)
	}
	return err
}

// directory makes a directory and those above it.
func (a *initramfs) directory(name string) error {
	if a.made[name] {
		return nil
	}
	if err := a.directory(path.Dir(name)); err != nil {
		return err
	}
	a.made[name] = true
	return a.header(name, typeDirectory|0o755, 0, 0, 0)
}

// console makes the device that process 1 writes to.
func (a *initramfs) console() error {
	if err := a.directory("dev"); err != nil {
		return err
	}
	return a.header("dev/console", typeDevice|0o600, 0, 5, 1)
}

// data makes a file.
func (a *initramfs) data(name string, mode fs.FileMode, content []byte) error {
	if err := a.directory(path.Dir(name)); err != nil {
		return err
	}
	if err := a.header(name, typeFile|int(mode.Perm()), len(content), 0, 0); err != nil {
		return err
	}
	n, err := a.w.Write(content)
	a.written += int64(n)
	return a.pad(err)
}

// file copies a file from the host.
func (a *initramfs) file(name string, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return a.data(name, info.Mode(), content)
}

// fillInitramfs puts the guest, the tests with their data, and a kernel's modules into
// an archive, and completes it.
func fillInitramfs(a *initramfs, k kernel, work string, todo wire.Jobs) error {
	if err := a.console(); err != nil {
		return err
	}
	if err := a.file("init", filepath.Join(work, "guest")); err != nil {
		return err
	}
	orders, err := json.Marshal(todo)
	if err != nil {
		return err
	}
	if err := a.data(strings.TrimPrefix(wire.JobsFile, "/"), 0o644, orders); err != nil {
		return err
	}
	for _, job := range todo.Tests {
		if err := a.tests(job.Name, filepath.Join(work, job.Name)); err != nil {
			return err
		}
	}
	if err := a.modules(k); err != nil {
		return err
	}
	return a.close()
}

// tests copies a test binary and the data of its package.
func (a *initramfs) tests(job, binary string) error {
	folder := path.Join("tests", job)
	if err := a.file(path.Join(folder, "test"), binary); err != nil {
		return err
	}
	data, err := filepath.Glob(filepath.Join(jobs[job], "testdata", "*.o"))
	if err != nil {
		return err
	}
	for _, from := range data {
		if err := a.file(path.Join(folder, "testdata", filepath.Base(from)), from); err != nil {
			return err
		}
	}
	return nil
}

// modules copies a kernel's modules, and their list.
func (a *initramfs) modules(k kernel) error {
	text, err := os.ReadFile(filepath.Join(k.dir, modulesFile))
	if err != nil {
		return err
	}
	var names, paths []string
	if err := json.Unmarshal(text, &names); err != nil {
		return err
	}
	for _, name := range names {
		if err := a.file("modules/"+name, filepath.Join(k.dir, name)); err != nil {
			return err
		}
		paths = append(paths, "/modules/"+name)
	}
	list, err := json.Marshal(paths)
	if err != nil {
		return err
	}
	return a.data(strings.TrimPrefix(wire.ModulesFile, "/"), 0o644, list)
}

func (a *initramfs) close() error {
	if err := a.header("TRAILER!!!", 0, 0, 0, 0); err != nil {
		return err
	}
	return a.w.Flush()
}
