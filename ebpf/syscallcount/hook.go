// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is the stub on sys_enter, which does no more than jump to the program that is
// in its table: the link of a raw tracepoint cannot be given another program.
type hook struct {
	jump  *ebpf.Map
	stub  *ebpf.Program // nil where an agent attached it that did not pin it
	enter link.Link
	dir   string
}

// leaving is how long a link that nobody holds any more may stay attached.
const leaving = 10 * time.Second

// adoptHook opens the hook that is pinned in dir; nil where there is none. Half a
// hook is deleted.
func adoptHook(dir string) (*hook, error) {
	jump, err := ebpf.LoadPinnedMap(filepath.Join(dir, jumpPin), nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the jump table: %w", err)
	}
	enter, err := link.LoadPinnedLink(filepath.Join(dir, enterPin), nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the link of sys_enter: %w", err)
	}
	stub, err := ebpf.LoadPinnedProgram(filepath.Join(dir, stubPin), nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the stub of sys_enter: %w", err)
	}
	h := &hook{jump: jump, stub: stub, enter: enter, dir: dir}
	if jump == nil || enter == nil {
		return nil, h.remove()
	}
	return h, nil
}

// attachHook lets program run at every system call of the node. The table belongs to
// this stub alone: one that is on its way out can never call the program a second time.
func attachHook(dir string, program *ebpf.Program) (*hook, error) {
	spec, err := loadSyscallcount()
	if err != nil {
		return nil, err
	}
	var objects struct {
		Stub *ebpf.Program `ebpf:"sys_enter_stub"`
		Jump *ebpf.Map     `ebpf:"sys_enter_jump"`
	}
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, fmt.Errorf("loading the stub of sys_enter: %w", err)
	}
	h := &hook{jump: objects.Jump, stub: objects.Stub, dir: dir}
	if err := h.attach(program); err != nil {
		return nil, errors.Join(err, h.remove())
	}
	return h, nil
}

func (h *hook) attach(program *ebpf.Program) error {
	if err := h.set(program); err != nil {
		return err
	}
	if err := h.jump.Pin(filepath.Join(h.dir, jumpPin)); err != nil {
		return fmt.Errorf("pinning the jump table: %w", err)
	}
	step()
	if err := h.stub.Pin(filepath.Join(h.dir, stubPin)); err != nil {
		return fmt.Errorf("pinning the stub of sys_enter: %w", err)
	}
	step()
	var err error
	h.enter, err = attachPinned(h.stub, "sys_enter", filepath.Join(h.dir, enterPin))
	step()
	return err
}

// set makes the stub call program from now on. Each call is seen by the program before
// or by this one.
func (h *hook) set(program *ebpf.Program) error {
	step()
	if err := h.jump.Put(uint32(0), program); err != nil {
		return fmt.Errorf("exchanging the program: %w", err)
	}
	step()
	return nil
}

// remove takes the stub away. No program is called by it any more, even if the
// kernel needs a while to detach it.
func (h *hook) remove() error {
	var errs []error
	if h.jump != nil {
		if err := h.jump.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("emptying the jump table: %w", err))
		}
	}
	for _, pin := range []string{enterPin, stubPin, jumpPin} {
		errs = append(errs, removePin(filepath.Join(h.dir, pin)))
	}
	return errors.Join(append(errs, h.close())...)
}

// missed returns how often the kernel did not run the stub.
func (h *hook) missed() (uint64, error) {
	if h.stub == nil {
		return 0, nil
	}
	stats, err := h.stub.Stats()
	if err != nil {
		return 0, fmt.Errorf("reading how often the stub was not run: %w", err)
	}
	return stats.RecursionMisses, nil
}

func (h *hook) close() error {
	var errs []error
	if h.enter != nil {
		errs = append(errs, h.enter.Close())
	}
	return errors.Join(append(errs, h.stub.Close(), h.jump.Close())...)
}

// attachPinned attaches program to a raw tracepoint, and puts the link in the place of
// what is pinned at path. The two overlap for a moment.
func attachPinned(program *ebpf.Program, tracepoint, path string) (link.Link, error) {
	attached, err := attachTracepoint(program, tracepoint)
	if err != nil {
		return nil, fmt.Errorf("attaching to the tracepoint %s: %w", tracepoint, err)
	}
	pending := path + newSuffix
	err = removePin(pending)
	if err == nil {
		err = attached.Pin(pending)
	}
	if errors.Is(err, link.ErrNotSupported) {
		// Before Linux 5.7: it lasts as long as this process.
		return attached, nil
	}
	if err == nil {
		step()
		err = os.Rename(pending, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pinning the link of %s: %w", tracepoint, err), removePin(pending), attached.Close())
	}
	return attached, nil
}

// attachTracepoint attaches program to a raw tracepoint. Older kernels take a program
// only once, and a link whose last pin was removed leaves a moment later.
func attachTracepoint(program *ebpf.Program, tracepoint string) (link.Link, error) {
	for end := time.Now().Add(leaving); ; time.Sleep(time.Millisecond) {
		attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: tracepoint, Program: program})
		if !errors.Is(err, unix.EEXIST) || time.Now().After(end) {
			return attached, err
		}
	}
}
