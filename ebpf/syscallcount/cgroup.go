// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/internal/podcgroup"
)

// GoneError says that a cgroup does not exist, or went while it was looked at.
type GoneError struct{ Cgroup string }

func (e *GoneError) Error() string { return fmt.Sprintf("the cgroup %s does not exist", e.Cgroup) }

// Unwrap makes it an fs.ErrNotExist.
func (e *GoneError) Unwrap() error { return fs.ErrNotExist }

// FullError says that no more cgroups can be registered.
type FullError struct{ Cgroups uint32 }

func (e *FullError) Error() string {
	return fmt.Sprintf("all %d entries for the cgroups of watched pods are taken", e.Cgroups)
}

// cgroupID asks one of package podcgroup's functions for a cgroup's id; where there is no
// such cgroup the error is a *GoneError.
func cgroupID(ask func(path string) (uint64, error), path string) (uint64, error) {
	id, err := ask(path)
	if gone(err) {
		return 0, &GoneError{path}
	}
	return id, err
}

// gone tells whether a file or its directory was removed.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESTALE)
}

// hintUnknown sends the program to the table of cgroups.
const hintUnknown = ^uint64(0)

// setHint says what the program finds at the cgroup's index.
func (s *store) setHint(id, hint uint64) error {
	index := uint32(id) * uint32(syscallcountHintIndexFACTOR) >> 16
	if err := s.maps[syscallcountMapCgroupHints].Put(index, hint); err != nil {
		return fmt.Errorf("writing the hint of cgroup %d: %w", id, err)
	}
	return nil
}

// addCgroup registers a cgroup. A crash in between leaves either nothing, or a cgroup
// that is found by the table.
func (s *store) addCgroup(id uint64, slot uint32) error {
	step()
	if err := s.setHint(id, hintUnknown); err != nil {
		return err
	}
	step()
	cgroups := s.maps[syscallcountMapCgroupSlots]
	if err := cgroups.Put(id, slot); err != nil {
		if errors.Is(err, unix.E2BIG) {
			return &FullError{cgroups.MaxEntries()}
		}
		return fmt.Errorf("registering cgroup %d for slot %d: %w", id, slot, err)
	}
	step()
	return s.setHint(id, id<<16|uint64(slot))
}

// dropCgroup undoes addCgroup; no hint may be left for the slot's next owner.
func (s *store) dropCgroup(id uint64) error {
	step()
	if err := s.setHint(id, hintUnknown); err != nil {
		return err
	}
	step()
	err := s.maps[syscallcountMapCgroupSlots].Delete(id)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forgetting cgroup %d: %w", id, err)
	}
	return nil
}

// register lets the calls in a cgroup and all below it count for slot. A cgroup is
// registered before what is in it is listed: children that come later are registered
// by the kernel's program.
func (s *store) register(path string, slot uint32) error {
	id, err := cgroupID(podcgroup.ID, path)
	if err != nil {
		return err
	}
	return s.registerTree(path, id, slot)
}

// registerTree registers the cgroup that had the id at path, and those in it.
func (s *store) registerTree(path string, id uint64, slot uint32) error {
	if err := s.addCgroup(id, slot); err != nil {
		return err
	}
	// If it went before it was registered, the program that forgets removed
	// cgroups came too early. If it is there now, that one is still to come.
	if again, err := cgroupID(podcgroup.KnownID, path); err != nil || again != id {
		return errors.Join(&GoneError{path}, s.dropCgroup(id))
	}
	names, err := children(path)
	if gone(err) {
		return &GoneError{path}
	}
	if err != nil {
		return fmt.Errorf("listing the cgroup %s: %w", path, err)
	}
	for _, name := range names {
		var removed *GoneError
		child := filepath.Join(path, name)
		id, err := cgroupID(podcgroup.KnownID, child)
		if err == nil {
			err = s.registerTree(child, id, slot)
		}
		if err != nil && !errors.As(err, &removed) {
			return err
		}
	}
	return nil
}

// children lists the cgroups in a cgroup. One that is being made counts among the
// directory's links before the kernel's program sees it, but is listed only after
// that: where the two differ, one may have been seen by neither, and it is asked again.
func children(path string) ([]string, error) {
	var names []string
	for range 100 {
		before, err := subdirectories(path)
		if err != nil || before == 0 {
			return nil, err
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		names = nil
		for _, entry := range entries {
			if entry.IsDir() {
				names = append(names, entry.Name())
			}
		}
		after, err := subdirectories(path)
		if err != nil || len(names) == before && before == after {
			return names, err
		}
	}
	// They come and go all the time. What was being made at first is there by now.
	return names, nil
}

// subdirectories counts those of a cgroup by its links: two more than they are.
func subdirectories(path string) (int, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return 0, err
	}
	return int(stat.Nlink) - 2, nil
}
