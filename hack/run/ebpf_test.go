// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/podconfigmap/podconfigmap-controller/hack/run/machine"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// skipUnable skips a test where this machine cannot run BPF programs.
func skipUnable(t *testing.T) {
	t.Helper()
	skipShort(t)
	if _, err := machine.Look(); err != nil {
		t.Skip(err)
	}
}

const nothingLeft = "looked for all of it, and nothing is left"

// wantNoSandbox checks that the session's cgroup and mount are gone.
func (p *process) wantNoSandbox(t *testing.T) {
	t.Helper()
	_, after, found := strings.Cut(p.output(), "CGROUP_ROOT=")
	if cgroup, _, _ := strings.Cut(after, "\n"); !found {
		t.Errorf("printed no CGROUP_ROOT:\n%s", p.output())
	} else if _, err := os.Stat(cgroup); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup %s is left (%v)", cgroup, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(p.tmp)) {
		t.Errorf("a mount below %s is left (%v)", p.tmp, err)
	}
}

func TestEBPFUntilInterrupted(t *testing.T) {
	skipUnable(t)
	t.Parallel()
	p := start(t, []string{"EBPF_ENABLED=true"})
	p.awaitOutput(t, "Ctrl-C stops everything")
	p.interrupt(t)
	p.end(t, 0,
		"shop-info  True   1        1       0",
		"served by l4_firewall and syscall_counter",
		"connected, after ",
		":9090: connect: operation not permitted, after ",
		":9090: i/o timeout, after 2.",
		"client  getppid  1000",
		"server  1        1        0",
		"client  1        1        0",
		"demo-node  True   2",
		"EBPFReady  True  Attached: 2 matching pods on 1 node",
		"kubectl get ebpfnodes,pcmc -A",
		nothingLeft,
	)
	p.wantNoSandbox(t)
}

func TestEBPFInterrupted(t *testing.T) {
	skipUnable(t)
	t.Parallel()
	p := start(t, []string{"EBPF_ENABLED=true"})
	p.awaitOutput(t, "Programs for each pod")
	p.interrupt(t)
	p.end(t, 130, "run: interrupted", nothingLeft)
	p.wantNoSandbox(t)
}

// A firewall that only counts lets the connection pass that should be denied.
func TestEBPFFailsWhereNothingIsBlocked(t *testing.T) {
	skipUnable(t)
	t.Parallel()
	samples := t.TempDir()
	if err := os.CopyFS(samples, os.DirFS("../../config/samples")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(samples, "ebpf", "podconfigmapconfig.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("    l4Firewall:\n"), []byte("    l4Firewall:\n      mode: audit\n"), 1)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"EBPF_ENABLED=true", "ONCE=true"}, "-samples="+samples)
	p.end(t, 1, "run: the connection to server:9090 should have been denied with EPERM: it connected", nothingLeft)
	p.wantNoSandbox(t)
}

func TestEBPFFailsWithTheAgent(t *testing.T) {
	skipUnable(t)
	t.Parallel()
	_, manager, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "operator")
	text := "#!/bin/sh\n[ \"$1\" != agent ] || exit 3\nexec " + manager + " \"$@\"\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"EBPF_ENABLED=true"}, "-manager="+script)
	p.end(t, 1, "the agent ended (exit status 3)", nothingLeft)
	p.wantNoSandbox(t)
}

// A machine that cannot says what it lacks, before anything is built or started.
func TestEBPFWhereTheMachineCannot(t *testing.T) {
	skipShort(t)
	program, _, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	try := func(environ ...string) string {
		run := exec.Command(program)
		run.Env, run.Dir = environ, "/"
		if os.Geteuid() == 0 {
			run.SysProcAttr = notRoot()
		}
		out, err := run.CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%v ended with %v, want code 1", environ, err)
		}
		return string(out)
	}
	out := try("EBPF_ENABLED=true")
	if !strings.Contains(out, "pretended to run: this is user ") || !strings.Contains(out, "this machine lacks:\n  - root (this is user ") || strings.Contains(out, "control plane") {
		t.Errorf("printed\n%s", out)
	}
	if out := try("NODE=true"); !strings.Contains(out, "run: NODE=true wants a real node here: this is user ") {
		t.Errorf("with NODE=true printed\n%s", out)
	}
}

func TestKeeper(t *testing.T) {
	k, order := &keeper{}, []string{}
	k.Cleanup(func() { order = append(order, "first") })
	k.Cleanup(func() { k.Fatalf("bad %s", "second") })
	k.Cleanup(func() { order = append(order, "third") })
	if err := k.try(func() { k.Skipf("no %s", "root"); t.Error("Skipf returned") }); err == nil || err.Error() != "no root" {
		t.Errorf("Skipf became %v", err)
	}
	k.Errorf("worse")
	if err := k.close(); err == nil || err.Error() != "worse\nbad second" {
		t.Errorf("closing became %v", err)
	}
	if !slices.Equal(order, []string{"third", "first"}) {
		t.Errorf("cleaned up %v", order)
	}
	defer func() {
		if r := recover(); r != "a bug" {
			t.Errorf("a panic became %v", r)
		}
	}()
	_ = k.try(func() { panic("a bug") })
}

// What an agent has pinned is found in the kernel as long as it is there.
func TestPinsAreFound(t *testing.T) {
	skipUnable(t)
	m, err := makeMachinery("none")
	if err != nil {
		t.Fatal(err)
	}
	array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	pins := filepath.Join(m.node.BPFFS(), "pins")
	if err := errors.Join(os.Mkdir(pins, 0o700), array.Pin(filepath.Join(pins, "array")), array.Close(), m.traces.Pinned(pins)); err != nil {
		t.Fatal(err)
	}
	if noted, err := m.traces.Noted(), m.traces.Left(); noted.Maps != 1 || err == nil {
		t.Errorf("noted %+v, and found %v", noted, err)
	} else {
		for _, want := range []string{"BPF map ", m.node.Root() + " is left", "the mount " + m.node.BPFFS(), "process ", "the network namespace "} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in %q", want, err)
			}
		}
	}
	if err := m.keeper.close(); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(patience); m.traces.Left() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after the end: %v", m.traces.Left())
		}
	}
}

// The agent's rights refer to each other by the names that they are installed with.
func TestReadRights(t *testing.T) {
	if _, err := harness.Root(); err != nil {
		t.Fatal(err)
	}
	objects, err := readRights("agent_role_binding.yaml", "here")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	check := func(role rbacv1.RoleRef, subjects []rbacv1.Subject) {
		found++
		want := rbacv1.Subject{Kind: "ServiceAccount", Namespace: "here", Name: "podconfigmap-controller-agent"}
		if role.Name != "podconfigmap-controller-agent-role" || len(subjects) != 1 || subjects[0] != want {
			t.Errorf("%+v is bound to %+v", role, subjects)
		}
	}
	for _, object := range objects {
		switch binding := object.(type) {
		case *rbacv1.ClusterRoleBinding:
			check(binding.RoleRef, binding.Subjects)
		case *rbacv1.RoleBinding:
			if check(binding.RoleRef, binding.Subjects); binding.Namespace != "here" {
				t.Errorf("the binding is in %q", binding.Namespace)
			}
		}
	}
	if found != 2 {
		t.Errorf("found %d bindings", found)
	}
}
