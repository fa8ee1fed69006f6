// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Numbers is how many system call numbers are counted: 0 to 511.
const Numbers = 512

// Settings say what is counted of a pod.
type Settings struct {
	// Numbers are the system calls that are counted, each below the constant
	// of that name; nil means all.
	Numbers []uint16
	// PerPID asks for counts per process as well.
	PerPID bool
}

// SlotError says that a slot is beyond the number that Open was told.
type SlotError struct{ Slot, Slots uint32 }

func (e *SlotError) Error() string {
	return fmt.Sprintf("there is no slot %d: the slots are 0 to %d", e.Slot, e.Slots-1)
}

// Counter owns the loaded programs, their maps and their attachments. Its methods may
// be called from several goroutines, but not from the functions that Read and ReadPIDs
// call.
type Counter struct {
	dir       string
	slots     uint32
	lock      *os.File
	fence     *fence
	discarded []string

	mu       sync.Mutex
	store    *store
	programs map[string]*ebpf.Program
	hook     *hook       // nil while nothing is watched
	cgroups  []link.Link // of the programs that follow cgroups; likewise
	watched  map[uint32]*watch
	unclean  map[uint32]syscallcountFlag // slots whose Unwatch is not finished, and their flags
	buffer   batch
}

// watch is what is known of a watched slot.
type watch struct {
	settings syscallcountSettings
	carried  *[Numbers]uint64 // nil where nothing was
}

// Discarded names the pins that Open found, did not understand, and deleted; what they
// had counted is lost, and whom they watched has to be watched again.
func (c *Counter) Discarded() []string { return slices.Clone(c.discarded) }

// Dropped returns how many cgroups could not be registered, when they were made, for
// lack of space. Their calls are missing from the counts. Where the number has grown,
// watching the pods again registers what there is space for by then.
func (c *Counter) Dropped() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n uint64
	if err := c.store.maps[syscallcountMapDroppedCgroups].Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("reading the number of dropped cgroups: %w", err)
	}
	return n, nil
}

// Missed returns at how many system calls of the node's processes, watched or not, the
// kernel has not run the program since it was attached; those of pods among them are
// missing from the counts. Before Linux 7 there are none. Later kernels preempt the
// program, and until it goes on they run it for no other process on that CPU.
func (c *Counter) Missed() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hook == nil {
		return 0, nil
	}
	return c.hook.missed()
}

// Watched returns the slots that are watched. The value is false where an earlier
// process ended before it had found all cgroups: watch such a slot again, or unwatch
// it.
func (c *Counter) Watched() map[uint32]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	slots := map[uint32]bool{}
	for slot, w := range c.watched {
		slots[slot] = w.settings.Flags&flagComplete != 0
	}
	return slots
}

// Watch counts the calls of a pod's processes for its slot from now on: those in the
// given cgroup and in all below it, also in those that are made later. For a slot that
// is watched already it changes the settings, keeps the counts, and looks for cgroups
// that could not be registered before. Errors that callers can tell: *SlotError,
// *GoneError where there is no such cgroup, *FullError where there is no space for
// another cgroup. A slot that was not watched before is not watched after an error.
func (c *Counter) Watch(slot uint32, cgroup string, s Settings) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.watch(slot, cgroup, s); err != nil {
		return fmt.Errorf("counting the system calls of slot %d: %w", slot, err)
	}
	return nil
}

func (c *Counter) watch(slot uint32, cgroup string, s Settings) error {
	if slot >= c.slots {
		return &SlotError{slot, c.slots}
	}
	settings, err := s.encode()
	if err != nil {
		return err
	}
	if err := c.finishUnwatch(); err != nil {
		return err
	}
	before, again := c.watched[slot]
	if again {
		settings.Flags |= before.settings.Flags & (flagComplete | flagHasPIDs)
	} else {
		before = &watch{}
	}
	if err := c.set(slot, &watch{settings, before.carried}); err != nil {
		return err
	}
	err = c.attach()
	if err == nil {
		err = c.store.register(cgroup, slot)
	}
	if err == nil {
		settings.Flags |= flagComplete
		return c.set(slot, &watch{settings, before.carried})
	}
	if !again {
		err = errors.Join(err, c.unwatch(slot))
	}
	return err
}

// encode returns the settings as the program reads them.
func (s Settings) encode() (syscallcountSettings, error) {
	var e syscallcountSettings
	e.Flags = flagWatched
	if s.PerPID {
		e.Flags |= flagPerPID | flagHasPIDs
	}
	for _, n := range s.Numbers {
		if n >= Numbers {
			return e, fmt.Errorf("the system call number %d is not below %d", n, Numbers)
		}
		e.Numbers[n/64] |= 1 << (n % 64)
	}
	if s.Numbers == nil {
		for i := range e.Numbers {
			e.Numbers[i] = ^uint64(0)
		}
	}
	return e, nil
}

// set writes a slot's settings.
func (c *Counter) set(slot uint32, w *watch) error {
	step()
	if before, ok := c.watched[slot]; ok && before.settings == w.settings {
		return nil
	}
	if err := c.store.putSettings(slot, &w.settings); err != nil {
		return err
	}
	c.watched[slot] = w
	return nil
}

// attach attaches what is not attached yet. Cgroups are followed before anything can be
// registered.
func (c *Counter) attach() error {
	if c.hook != nil {
		return nil
	}
	if err := c.followCgroups(); err != nil {
		return err
	}
	var err error
	c.hook, err = attachHook(c.dir, c.programs[syscallcountProgCountSyscall])
	return err
}

// followCgroups attaches the programs that register and forget cgroups, in the place
// of those of an earlier process.
func (c *Counter) followCgroups() error {
	if len(c.cgroups) > 0 {
		return nil
	}
	forget, err := attachPinned(c.programs[syscallcountProgForgetCgroup], "cgroup_rmdir", filepath.Join(c.store.path, rmdirPin))
	if err != nil {
		return err
	}
	step()
	inherit, err := attachPinned(c.programs[syscallcountProgInheritSlot], "cgroup_mkdir", filepath.Join(c.store.path, mkdirPin))
	if err != nil {
		return errors.Join(err, forget.Close())
	}
	c.cgroups = []link.Link{forget, inherit}
	step()
	return nil
}

// detach takes every program out of the kernel's way.
func (c *Counter) detach() error {
	var errs []error
	if c.hook != nil {
		errs = append(errs, c.hook.remove())
		c.hook = nil
	}
	for _, name := range []string{mkdirPin, rmdirPin} {
		errs = append(errs, removePin(filepath.Join(c.store.path, name)))
	}
	for _, l := range c.cgroups {
		errs = append(errs, l.Close())
	}
	c.cgroups = nil
	return errors.Join(errs...)
}

// Unwatch stops counting for the slots, and forgets their counts: it returns when no
// program can write to them any more, after about ten milliseconds, however many slots
// they are. A slot that is not watched is no error.
func (c *Counter) Unwatch(slots ...uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unwatch(slots...)
}

func (c *Counter) unwatch(slots ...uint32) error {
	for _, slot := range slots {
		w, ok := c.watched[slot]
		if !ok {
			continue
		}
		flags := flagUnclean | w.settings.Flags&flagHasPIDs
		step()
		if err := c.store.putSettings(slot, &syscallcountSettings{Flags: flags}); err != nil {
			return fmt.Errorf("stopping to count for slot %d: %w", slot, err)
		}
		delete(c.watched, slot)
		c.unclean[slot] = flags
	}
	return c.finishUnwatch()
}

// finishUnwatch zeroes what was counted for slots that are no longer watched, once no
// program can still write to it.
func (c *Counter) finishUnwatch() error {
	if len(c.unclean) > 0 {
		step()
		if err := c.fence.wait(); err != nil {
			return err
		}
		if err := c.forget(); err != nil {
			return err
		}
		for slot := range c.unclean {
			if err := c.zero(slot); err != nil {
				return err
			}
		}
	}
	if len(c.watched) == 0 {
		return c.detach()
	}
	return nil
}

// forget deletes the unclean slots from the tables that have other keys.
func (c *Counter) forget() error {
	registered, err := cgroupsOf(c.store.maps[syscallcountMapCgroupSlots])
	if err != nil {
		return err
	}
	for id, slot := range registered {
		if _, ok := c.unclean[slot]; !ok {
			continue
		}
		if err := c.store.dropCgroup(id); err != nil {
			return err
		}
	}
	var flags syscallcountFlag
	for _, f := range c.unclean {
		flags |= f
	}
	if flags&flagHasPIDs == 0 {
		return nil
	}
	var stale []syscallcountProcessCall
	calls := c.store.maps[syscallcountMapProcessCalls]
	err = entriesOf(calls, func(call syscallcountProcessCall, _ uint64) {
		if _, ok := c.unclean[call.Slot]; ok {
			stale = append(stale, call)
		}
	})
	for _, call := range stale {
		if err := calls.Delete(call); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forgetting the calls of process %d: %w", call.Process, err)
		}
	}
	return err
}

// zero clears the rows of an unclean slot, the mark last.
func (c *Counter) zero(slot uint32) error {
	step()
	if err := c.store.zeroOwn(slot); err != nil {
		return err
	}
	step()
	err := c.store.maps[syscallcountMapCarriedRows].Delete(slot)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("zeroing the carried counts of slot %d: %w", slot, err)
	}
	step()
	if err := c.store.putSettings(slot, &syscallcountSettings{}); err != nil {
		return err
	}
	delete(c.unclean, slot)
	return nil
}

// Close lets go of everything; what is pinned, and so counting, stays.
func (c *Counter) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if c.hook != nil {
		errs = append(errs, c.hook.close())
	}
	for _, l := range c.cgroups {
		errs = append(errs, l.Close())
	}
	for _, p := range c.programs {
		errs = append(errs, p.Close())
	}
	if c.store != nil {
		errs = append(errs, c.store.close())
	}
	return errors.Join(append(errs, c.fence.close(), c.lock.Close())...)
}
