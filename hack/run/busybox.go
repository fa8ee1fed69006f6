// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/test/cluster"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// busyboxImage is the samples' image. Nothing is pulled: it is made of this machine's
// busybox.
const busyboxImage = "docker.io/library/busybox:1.37"

// buildBusybox makes a tar of the samples' image in a folder: busybox, and a script for
// each command that it has.
func buildBusybox(ctx context.Context, folder string) (string, error) {
	program, err := cluster.Busybox()
	if err != nil {
		return "", err
	}
	list, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its commands: %w", program, err)
	}
	commands := filepath.Join(folder, "bin")
	if err := os.Mkdir(commands, 0o755); err != nil {
		return "", err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name == "busybox" {
			continue
		}
		text := fmt.Sprintf("#!/bin/busybox sh\nexec /bin/busybox %s \"$@\"\n", name)
		if err := os.WriteFile(filepath.Join(commands, name), []byte(text), 0o755); err != nil {
			return "", err
		}
	}
	top, err := harness.Root()
	if err != nil {
		return "", err
	}
	tar := filepath.Join(folder, "busybox.tar")
	command := exec.CommandContext(ctx, filepath.Join(top, "bin", "image"), "build", "-platform", "linux/"+runtime.GOARCH,
		"-add", "/bin="+commands, "-add", "/bin/busybox="+program, "-env", "PATH=/bin", "-user", "", "-cmd", "sh",
		"-tar", tar, "-name", busyboxImage)
	if said, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the image %s: %w\n%s", busyboxImage, err, said)
	}
	return tar, nil
}
