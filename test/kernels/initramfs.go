// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"path"
	"path/filepath"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/vm"
	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// fillInitramfs puts the guest, the tests with their data, and a kernel's modules into
// an archive, and completes it.
func fillInitramfs(a *vm.Initramfs, k vm.Kernel, work string, todo wire.Jobs) error {
	if err := a.Console(); err != nil {
		return err
	}
	if err := a.File("init", filepath.Join(work, "guest")); err != nil {
		return err
	}
	orders, err := json.Marshal(todo)
	if err != nil {
		return err
	}
	if err := a.Data(strings.TrimPrefix(wire.JobsFile, "/"), 0o644, orders); err != nil {
		return err
	}
	for _, job := range todo.Tests {
		if err := addTests(a, job.Name, filepath.Join(work, job.Name)); err != nil {
			return err
		}
	}
	if err := addModules(a, k); err != nil {
		return err
	}
	return a.Close()
}

// addTests copies a test binary and the data of its package.
func addTests(a *vm.Initramfs, job, binary string) error {
	folder := path.Join("tests", job)
	if err := a.File(path.Join(folder, "test"), binary); err != nil {
		return err
	}
	data, err := filepath.Glob(filepath.Join(jobs[job], "testdata", "*.o"))
	if err != nil {
		return err
	}
	for _, from := range data {
		if err := a.File(path.Join(folder, "testdata", filepath.Base(from)), from); err != nil {
			return err
		}
	}
	return nil
}

// addModules copies a kernel's modules, and their list.
func addModules(a *vm.Initramfs, k vm.Kernel) error {
	modules, err := k.Modules()
	if err != nil {
		return err
	}
	var paths []string
	for _, from := range modules {
		to := "/modules/" + filepath.Base(from)
		if err := a.File(strings.TrimPrefix(to, "/"), from); err != nil {
			return err
		}
		paths = append(paths, to)
	}
	list, err := json.Marshal(paths)
	if err != nil {
		return err
	}
	return a.Data(strings.TrimPrefix(wire.ModulesFile, "/"), 0o644, list)
}
