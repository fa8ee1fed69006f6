// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// What a program on the pod's cgroup forbids is forbidden to the pod's processes
// from birth, and to nobody else's.
func TestDenied(t *testing.T) {
	n := New(t)
	denied, free := n.Pod(PodOptions{Driver: Systemd}), n.Pod(PodOptions{})
	inside, outside := denied.Peer(), free.Peer()
	newborn := denied.Container("born")
	forbid(t, denied.Cgroup())
	for i, network := range []string{"tcp4", "tcp6"} {
		server := listen(t, outside, network, free.Addresses()[i])
		if err := inside.Dial(network, server, long); !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s inside: %v, want EPERM", network, err)
		}
		if err := outside.Dial(network, server, long); err != nil {
			t.Errorf("%s outside: %v", network, err)
		}
		born := newborn.Connect("tcp", server, long)
		until(t, born, func(c NewbornCounts) bool { return c.Attempts >= 100 })
		if c := born.Stop(); c.Denied != c.Attempts {
			t.Errorf("%s newborn: %+v, want only denials", network, c)
		}
		received(t, outside, network, server, 1)
	}
	for i, network := range []string{"udp4", "udp6"} {
		server := listen(t, outside, network, free.Addresses()[i])
		if err := inside.Send(network, "", server, 10); !errors.Is(err, syscall.EPERM) {
			t.Errorf("%s inside: %v, want EPERM", network, err)
		}
		if err := outside.Request(network, "", server, 10, long); err != nil {
			t.Errorf("%s outside: %v", network, err)
		}
	}
	if err := inside.Dial("tcp4in6", "10.244.0.1:1", long); !errors.Is(err, syscall.EPERM) {
		t.Errorf("IPv4 from an IPv6 socket: %v, want EPERM", err)
	}
}

// A pinned program stays in the node's BPF file system until the end.
func TestBPFFS(t *testing.T) {
	n := New(t)
	program := refuse(t, ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress)
	path := n.BPFFS() + "/program"
	if err := program.Pin(path); err != nil {
		t.Fatal(err)
	}
	again, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// forbid lets no connection and no packet out of a cgroup.
func forbid(t *testing.T, cgroup string) {
	t.Helper()
	for attach, kind := range map[ebpf.AttachType]ebpf.ProgramType{
		ebpf.AttachCGroupInet4Connect: ebpf.CGroupSockAddr,
		ebpf.AttachCGroupInet6Connect: ebpf.CGroupSockAddr,
		ebpf.AttachCGroupInetEgress:   ebpf.CGroupSKB,
	} {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: attach, Program: refuse(t, kind, attach)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

// refuse is a program that says no to everything.
func refuse(t *testing.T, kind ebpf.ProgramType, attach ebpf.AttachType) *ebpf.Program {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind, AttachType: attach, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}
