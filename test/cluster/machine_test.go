// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// machineOf starts a machine without any of a cluster's programs.
func machineOf(t *testing.T, p *place) *machine {
	t.Helper()
	s := spec{Name: "some-node", Root: filepath.Join(p.dir, "root"), Node: true, Folders: map[string]folder{
		"/var": {Source: filepath.Join(p.dir, "var")}, "/var/log": {Source: filepath.Join(p.dir, "logs")},
	}}
	cgroup := filepath.Join(p.cgroup, s.Name)
	for _, dir := range []string{s.Root, filepath.Join(p.dir, "var", "log"), filepath.Join(p.dir, "logs"), cgroup} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m, err := startMachine(t.Context(), s, cgroup, filepath.Join(p.dir, "logs"), filepath.Join(p.dir, "spec.json"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMachine: what a machine sees is its own.
func TestMachine(t *testing.T) {
	needsRoot(t)
	p := reserved(t)
	m := machineOf(t, p)
	t.Cleanup(func() {
		if err := m.kill(); err != nil {
			t.Error(err)
		}
		if err := p.release(); err != nil {
			t.Error(err)
		}
		absent(t, p.cgroup, p.dir)
	})
	for command, want := range map[string]string{
		"hostname":                               "some-node",
		"cat /proc/sys/vm/overcommit_memory":     "1",
		"cat /proc/sys/net/ipv4/ip_forward":      "1",
		"ls /sys/class/net":                      "lo",
		"ls -d /sys/fs/bpf /var/log /tmp":        "/sys/fs/bpf\n/tmp\n/var/log",
		"stat -f -c %T /sys/fs/cgroup /run":      "cgroup2fs\ntmpfs",
		"cat /proc/1/comm":                       "exe",
		"stat -f -c %T /sys/fs/bpf":              "bpf_fs",
		"grep -c 0::/system/init /proc/1/cgroup": "1",
	} {
		if got, err := m.run(t.Context(), "sh", "-c", command); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s: %q, %v; want %q", command, got, err, want)
		}
	}
	if got, err := m.run(t.Context(), "touch", "/usr/some-file"); err == nil {
		t.Errorf("it could write into the host's /usr: %s", got)
	}
	if err := m.connects(t.Context(), "/run/no.sock"); err == nil || !strings.Contains(err.Error(), "/run/no.sock") {
		t.Errorf("connecting where nobody listens: %v", err)
	}
	if _, err := m.run(t.Context(), "no-such-program"); err == nil {
		t.Error("a program that is not there: no error")
	}
}

// TestMachineRunsPrograms: they are started, seen to end, stopped, killed.
func TestMachineRunsPrograms(t *testing.T) {
	needsRoot(t)
	p := reserved(t)
	m := machineOf(t, p)
	if err := m.start(t.Context(), "sleeper", []string{"sleep", "600"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.start(t.Context(), "sleeper", []string{"sleep", "600"}, nil); err == nil {
		t.Error("it was started twice")
	}
	if err := m.stop(t.Context(), "sleeper"); err != nil {
		t.Error(err)
	}
	// One that will not hear is killed.
	if err := m.start(t.Context(), "sleeper", []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.killProgram(t.Context(), "sleeper"); err != nil {
		t.Error(err)
	}
	// One that ends while it is waited for says so, with its log.
	err := m.start(t.Context(), "brief", []string{"sh", "-c", "echo last words; exit 7"}, func(context.Context) error { return os.ErrNotExist })
	if err == nil || !strings.Contains(err.Error(), "code 7") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("the error is %v", err)
	}
	if err := m.stop(t.Context(), "never"); err == nil {
		t.Error("a program that was never started could be stopped")
	}
	// A command without an end is given up.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := m.run(ctx, "sleep", "600"); err == nil {
		t.Error("a command without an end: no error")
	}
	if err := m.kill(); err != nil {
		t.Error(err)
	}
	if _, err := m.run(t.Context(), "true"); err == nil {
		t.Error("a machine that has ended runs a command")
	}
	if err := p.release(); err != nil {
		t.Error(err)
	}
	absent(t, p.cgroup, p.dir)
}
