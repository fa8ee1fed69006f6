// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Traces are what somebody has made on this machine, noted to be looked for at the end.
// Numbers and names that others have taken over meanwhile are told apart.
type Traces struct {
	mu         sync.Mutex
	paths      map[string]os.FileInfo // cgroups, folders, mount points
	processes  map[int]uint64         // when they began, by id
	namespaces []string               // of networks, as net:[4026531840]
	programs   []ebpf.ProgramID
	maps       []ebpf.MapID
	links      []link.ID
	end        uint64 // when all should have ended; 0: before that
}

// Noted is how much there is to be looked for.
type Noted struct{ Processes, Namespaces, Programs, Maps, Links int }

// Noted counts what was noted.
func (t *Traces) Noted() Noted {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Noted{len(t.processes), len(t.namespaces), len(t.programs), len(t.maps), len(t.links)}
}

// Path notes a cgroup, folder or mount point, which is there.
func (t *Traces) Path(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paths == nil {
		t.paths = map[string]os.FileInfo{}
	}
	t.paths[path] = info
	return nil
}

// Process notes a process and its network namespace, unless that is the machine's.
func (t *Traces) Process(pid int) error {
	own, err := netnsOf(os.Getpid())
	if err != nil {
		return err
	}
	namespace, err := netnsOf(pid)
	if err != nil {
		return err
	}
	p, err := readProcess(pid)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.processes == nil {
		t.processes = map[int]uint64{}
	}
	t.processes[pid] = p.began
	if namespace != own && !slices.Contains(t.namespaces, namespace) {
		t.namespaces = append(t.namespaces, namespace)
	}
	return nil
}

// netnsOf names the network namespace of a process.
func netnsOf(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)) }

// process is one as the kernel tells of it.
type process struct {
	pid, parent int
	state       string
	began       uint64 // in ticks since the machine did
}

func readProcess(pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// A name may have spaces and parentheses.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("reading the state of process %d: %q", pid, text)
	}
	p := process{pid: pid, state: fields[0]}
	var failed [2]error
	p.parent, failed[0] = strconv.Atoi(fields[1])
	p.began, failed[1] = strconv.ParseUint(fields[19], 10, 64)
	return p, errors.Join(failed[:]...)
}

// ticks is how long the machine runs, in the unit of process.began.
func ticks() (uint64, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return uint64(now.Nano()) / 1e7, err
}

// Pinned notes what is pinned below a directory of a BPF file system.
func (t *Traces) Pinned(dir string) error {
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

func (t *Traces) pin(path string) error {
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

// Left names what is still there.
func (t *Traces) Left() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end == 0 {
		var err error
		if t.end, err = ticks(); err != nil {
			return err
		}
	}
	return errors.Join(t.pathsLeft(), t.processesLeft(), t.namespacesLeft(), t.kernelLeft())
}

func (t *Traces) pathsLeft() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for path, was := range t.paths {
		if is, err := os.Lstat(path); err == nil && os.SameFile(is, was) {
			errs = append(errs, fmt.Errorf("%s is left", path))
		}
		if strings.Contains(string(mounts), " "+path+" ") || strings.Contains(string(mounts), " "+path+"/") {
			errs = append(errs, fmt.Errorf("the mount %s is left", path))
		}
	}
	return errors.Join(errs...)
}

func (t *Traces) processesLeft() error {
	var errs []error
	for pid, began := range t.processes {
		if p, err := readProcess(pid); err == nil && p.began == began {
			errs = append(errs, fmt.Errorf("process %d is left (%s)", pid, p.state))
		}
	}
	return errors.Join(errs...)
}

// namespacesLeft looks for what keeps a network namespace: processes inside, open
// files, mounts. What began after the end has another namespace of that number.
func (t *Traces) namespacesLeft() error {
	kept := map[string]string{}
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			// One that has gone meanwhile keeps nothing.
			target, err := os.Readlink(file)
			if err == nil && !t.later(file) {
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

// later tells a file of a process that began after the end.
func (t *Traces) later(file string) bool {
	pid, err := strconv.Atoi(strings.Split(file, "/")[2])
	if err != nil {
		return false // of this one
	}
	p, err := readProcess(pid)
	return err == nil && p.began > t.end
}

// kernelLeft asks for ids alone: a kernel (6.18 does) can lose count of who uses a
// program array that is opened just when its last user lets go of it.
func (t *Traces) kernelLeft() error {
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
