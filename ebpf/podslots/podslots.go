// SPDX-License-Identifier: Apache-2.0

// Package podslots gives every pod that a program serves a number, its slot: the
// index of the pod's rows in the programs' maps. A pod keeps its slot while agents
// come and go, because the registry is pinned.
package podslots

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
)

// The pin's name. Key and value are fixed for good: 64 bytes, the UID padded with
// zeros, and the slot as a u32.
const (
	pin     = "podslots_v1"
	pending = pin + "_new"
	keySize = 64
)

// FullError says that every slot has a pod.
type FullError struct{ Slots uint32 }

func (e *FullError) Error() string {
	return fmt.Sprintf("all %d slots for pods are taken", e.Slots)
}

// Slots is the registry. Its methods may be called from several goroutines.
type Slots struct {
	mu    sync.Mutex
	lock  *os.File
	table *ebpf.Map
	slots uint32
	pods  map[types.UID]uint32
	taken []bool
}

// Open adopts the registry that is pinned in dir, a directory in a BPF file system
// that exists, or makes one with the given number of slots. A registry of another
// size is replaced by one of this size, each pod keeping its slot; if a pod has a
// slot beyond it, the larger size stays (see Len). One process at a time can hold
// the registry: the others get bpffs.ErrLocked.
func Open(dir string, slots uint32) (*Slots, error) {
	if slots == 0 {
		return nil, errors.New("opening the registry of pods: no slots")
	}
	if err := bpffs.Check(dir); err != nil {
		return nil, fmt.Errorf("opening the registry of pods: %w", err)
	}
	lock, err := bpffs.Lock(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the registry of pods: %w", err)
	}
	s := &Slots{lock: lock, slots: slots, pods: map[types.UID]uint32{}}
	if err := s.adopt(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the registry of pods: %w", err), s.Close())
	}
	return s, nil
}

// Pinned is the number of slots of the registry that is pinned in dir; where there is
// none the error is fs.ErrNotExist.
func Pinned(dir string) (uint32, error) {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, pin), nil)
	if err != nil {
		return 0, fmt.Errorf("looking at the registry of pods: %w", err)
	}
	return pinned.MaxEntries(), pinned.Close()
}

// adopt finds or makes the table and reads it.
func (s *Slots) adopt(dir string) error {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, pin), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return s.create(dir)
	}
	if err != nil {
		return err
	}
	s.table = pinned
	if err := s.read(); err != nil {
		return err
	}
	if pinned.MaxEntries() == s.slots {
		return nil
	}
	return errors.Join(s.create(dir), pinned.Close())
}

// read fills pods and taken from the table, and raises slots to the table's size
// if a pod needs that.
func (s *Slots) read() error {
	var key [keySize]byte
	var slot uint32
	entries := s.table.Iterate()
	for entries.Next(&key, &slot) {
		s.pods[uidOf(key)] = slot
		if slot >= s.slots {
			s.slots = s.table.MaxEntries()
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("reading the slots: %w", err)
	}
	s.taken = make([]bool, s.slots)
	for uid, slot := range s.pods {
		if slot >= s.slots {
			return fmt.Errorf("pod %s has slot %d of %d", uid, slot, s.slots)
		}
		s.taken[slot] = true
	}
	return nil
}

// create makes a table of the wanted size with the pods of the one before, and puts
// it in that one's place.
func (s *Slots) create(dir string) error {
	table, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "pod_slots", Type: ebpf.Hash, KeySize: keySize, ValueSize: 4, MaxEntries: s.slots,
	})
	if err != nil {
		return fmt.Errorf("creating the table: %w", err)
	}
	s.table = table
	if s.taken == nil {
		s.taken = make([]bool, s.slots)
	}
	for uid, slot := range s.pods {
		key, err := keyOf(uid)
		if err != nil {
			return err
		}
		if err := table.Put(key, slot); err != nil {
			return fmt.Errorf("copying the slot of pod %s: %w", uid, err)
		}
	}
	// A crash may have left it.
	if err := remove(filepath.Join(dir, pending)); err != nil {
		return err
	}
	if err := table.Pin(filepath.Join(dir, pending)); err != nil {
		return fmt.Errorf("pinning the table: %w", err)
	}
	return os.Rename(filepath.Join(dir, pending), filepath.Join(dir, pin))
}

// Len is the number of slots: what was asked for, or more where an earlier registry
// had more and still uses them.
func (s *Slots) Len() uint32 { return s.slots }

// Take returns the pod's slot; a pod that has none gets the lowest that is free. The
// error is a *FullError when there is none.
func (s *Slots) Take(uid types.UID) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot, ok := s.pods[uid]; ok {
		return slot, nil
	}
	key, err := keyOf(uid)
	if err != nil {
		return 0, err
	}
	for slot, taken := range s.taken {
		if taken {
			continue
		}
		if err := s.table.Put(key, uint32(slot)); err != nil {
			return 0, fmt.Errorf("giving pod %s slot %d: %w", uid, slot, err)
		}
		s.taken[slot] = true
		s.pods[uid] = uint32(slot)
		return uint32(slot), nil
	}
	return 0, fmt.Errorf("giving pod %s a slot: %w", uid, &FullError{Slots: s.slots})
}

// Release frees the pod's slot. The caller has zeroed the programs' rows before: the
// next pod may get the slot at once. A pod without a slot is no error.
func (s *Slots) Release(uid types.UID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot, ok := s.pods[uid]
	if !ok {
		return nil
	}
	key, err := keyOf(uid)
	if err != nil {
		return err
	}
	if err := s.table.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("releasing slot %d of pod %s: %w", slot, uid, err)
	}
	delete(s.pods, uid)
	s.taken[slot] = false
	return nil
}

// All returns a copy of the registry.
func (s *Slots) All() map[types.UID]uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.pods)
}

// Close lets go of the registry; the pin stays.
func (s *Slots) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.table != nil {
		err = s.table.Close()
	}
	return errors.Join(err, s.lock.Close())
}

// Remove deletes the registry from dir. What is not there is no error.
func Remove(dir string) error {
	return errors.Join(remove(filepath.Join(dir, pending)), remove(filepath.Join(dir, pin)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func keyOf(uid types.UID) ([keySize]byte, error) {
	var key [keySize]byte
	if uid == "" || len(uid) > keySize {
		return key, fmt.Errorf("the pod UID %q has %d bytes, not 1 to %d", uid, len(uid), keySize)
	}
	copy(key[:], uid)
	return key, nil
}

func uidOf(key [keySize]byte) types.UID {
	end := len(key)
	for end > 0 && key[end-1] == 0 {
		end--
	}
	return types.UID(key[:end])
}
