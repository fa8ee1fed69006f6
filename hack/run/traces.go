// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// traces are what the eBPF part of the demo has made outside its own folders, to
// be looked for at the end.
type traces struct {
	paths []string // cgroup, mount point

	mu         sync.Mutex
	pids       []int
	namespaces []string // of networks, as net:[4026531840]
	programs   []ebpf.ProgramID
	maps       []ebpf.MapID
	links      []link.ID
}

// process notes a process and its network namespace, unless that is the machine's.
func (t *traces) process(pid int) error {
	own, err := netnsOf(os.Getpid())
	if err != nil {
		return err
	}
	namespace, err := netnsOf(pid)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pids = append(t.pids, pid)
	if namespace != own && !slices.Contains(t.namespaces, namespace) {
		t.namespaces = append(t.namespaces, namespace)
	}
	return nil
}

// pinned notes what is pinned below a directory of a BPF file system.
func (t *traces) pinned(dir string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		return t.pin(path)
	})
}

func (t *traces) pin(path string) error {
	if m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{}); err == nil {
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		if id, ok := info.ID(); ok {
			t.maps = append(t.maps, id)
		}
		return nil
	}
	if p, err := ebpf.LoadPinnedProgram(path, &ebpf.LoadPinOptions{}); err == nil {
		defer p.Close()
		info, err := p.Info()
		if err != nil {
			return err
		}
		if id, ok := info.ID(); ok {
			t.programs = append(t.programs, id)
		}
		return nil
	}
	l, err := link.LoadPinnedLink(path, &ebpf.LoadPinOptions{})
	if err != nil {
		return fmt.Errorf("%s is neither map nor program nor link: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	t.links = append(t.links, info.ID)
	if !slices.Contains(t.programs, info.Program) {
		t.programs = append(t.programs, info.Program)
	}
	return nil
}

// left names what is still there.
func (t *traces) left() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.pathsLeft(), t.processesLeft(), t.namespacesLeft(), t.kernelLeft())
}

func (t *traces) pathsLeft() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range t.paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s is left", path))
		}
		if strings.Contains(string(mounts), " "+path+" ") {
			errs = append(errs, fmt.Errorf("the mount %s is left", path))
		}
	}
	return errors.Join(errs...)
}

func (t *traces) processesLeft() error {
	var errs []error
	for _, pid := range t.pids {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			errs = append(errs, fmt.Errorf("process %d is left", pid))
		}
	}
	return errors.Join(errs...)
}

// namespacesLeft looks for what keeps a network namespace: processes inside, open
// files, mounts.
func (t *traces) namespacesLeft() error {
	kept := map[string]string{}
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			// One that has gone meanwhile keeps nothing.
			if target, err := os.Readlink(file); err == nil {
				kept[target] = file
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, namespace := range t.namespaces {
		if by := kept[namespace]; by != "" {
			errs = append(errs, fmt.Errorf("the network namespace %s is left: %s", namespace, by))
		}
		if strings.Contains(string(mounts), " "+namespace+" ") {
			errs = append(errs, fmt.Errorf("the network namespace %s is left: it is mounted", namespace))
		}
	}
	return errors.Join(errs...)
}

// kernelLeft asks for ids alone: a kernel (6.18 does) can lose count of who uses a
// program array that is opened just when its last user lets go of it.
func (t *traces) kernelLeft() error {
	var errs []error
	for _, id := range t.programs {
		if next, err := ebpf.ProgramGetNextID(id - 1); err == nil && next == id {
			errs = append(errs, fmt.Errorf("BPF program %d is left", id))
		}
	}
	for _, id := range t.maps {
		if next, err := ebpf.MapGetNextID(id - 1); err == nil && next == id {
			errs = append(errs, fmt.Errorf("BPF map %d is left", id))
		}
	}
	for _, id := range t.links {
		if l, err := link.NewFromID(id); err == nil {
			errs = append(errs, fmt.Errorf("BPF link %d is left", id), l.Close())
		}
	}
	return errors.Join(errs...)
}

// tellWhatIsLeft waits until nothing is, and says so: the kernel frees some things
// a moment after their last user.
func (s *session) tellWhatIsLeft(ctx context.Context, t *traces) error {
	_, err := s.awaitAlone(ctx, "nothing is left", func(context.Context) (bool, error) {
		err := t.left()
		return err == nil, err
	})
	if err != nil {
		return err
	}
	s.say("  looked for all of it, and nothing is left: none of %d processes and %d network namespaces, no cgroup,",
		len(t.pids), len(t.namespaces))
	s.say("  no mount; in the kernel none of %d BPF programs, %d maps and %d links that were pinned",
		len(t.programs), len(t.maps), len(t.links))
	return nil
}
