// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds each wait for something that the machine does by itself.
const patience = time.Minute

// removeCgroup removes a cgroup with all below it, children first, and ends the
// processes that are still inside. One that is not there is no error.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(patience)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := removeTree(dir)
		// A process that was killed leaves its cgroup a moment later; others may
		// still be making children.
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !vanished(err) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	errs = append(errs, killAll(dir))
	if err := unix.Rmdir(dir); err != nil && !vanished(err) {
		errs = append(errs, fmt.Errorf("rmdir %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// killAll ends every process of one cgroup, by its pid.
func killAll(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		if vanished(err) {
			return nil
		}
		return err
	}
	for _, line := range strings.Fields(string(data)) {
		// 0 is a process of another PID namespace: not one of ours.
		if pid, err := strconv.Atoi(line); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}

// vanished says whether an error means that a cgroup is gone: ENODEV comes from
// files that were open when it went.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
