// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTooOld(t *testing.T) {
	for release, want := range map[string]string{
		"5.13.9-arch":  "this is Linux 5.13.9-arch, and clusters need 5.14 or later",
		"4.19.0":       "this is Linux 4.19.0, and clusters need 5.14 or later",
		"5.14.0-1":     "",
		"6.1.0-amd64":  "",
		"unbelievable": `reading the kernel's release "unbelievable"`,
	} {
		err := tooOld(release)
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", release, err, want)
		}
	}
}

func TestLacksPackages(t *testing.T) {
	here := filepath.Join(t.TempDir(), "here")
	if err := os.WriteFile(here, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all := []wanted{
		{"shell", isProgram("sh")}, {"nothing", isProgram("no-such-program")}, {"file", isFile(here)}, {"headers", isFile(here + ".h")},
	}
	err := lacksPackages(all)
	if err == nil || err.Error() != "there is no nothing, headers: apt-get install nothing headers" {
		t.Errorf("missing packages become %v", err)
	}
	if err := lacksPackages(all[:1]); err != nil {
		t.Error(err)
	}
}

func TestTryMachine(t *testing.T) {
	if err := Lacks(); err != nil {
		t.Fatal("these tests need a machine that can run clusters:", err)
	}
	// Where a folder is no cgroup nobody can be born into it.
	dir := t.TempDir()
	if err := tryMachineIn(dir); err == nil || !strings.Contains(err.Error(), "making namespaces in a cgroup") {
		t.Errorf("a folder that is no cgroup became %v", err)
	}
	if err := tryMachineIn(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "making a cgroup") {
		t.Errorf("a folder that is not there became %v", err)
	}
}

// A busybox that wants libraries would not run in the image.
func TestBusybox(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := Busybox(); err == nil || !strings.HasSuffix(err.Error(), "apt-get install busybox-static") {
		t.Errorf("no busybox became %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Busybox(); err == nil || !strings.Contains(err.Error(), "reading "+dir) {
		t.Errorf("a script became %v", err)
	}
	text, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Busybox(); err == nil || !strings.HasSuffix(err.Error(), "is not static: apt-get install busybox-static") {
		t.Errorf("a program with libraries became %v", err)
	}
}
