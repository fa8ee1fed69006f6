// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

const (
	flagWatched  = syscallcountFlagWATCHED
	flagPerPID   = syscallcountFlagPER_PID
	flagComplete = syscallcountFlagCOMPLETE
	flagUnclean  = syscallcountFlagUNCLEAN
	flagHasPIDs  = syscallcountFlagHAS_PIDS
)

// layout is one shape of the pinned maps. Whoever changes a struct in C lets it grow
// at its end and raises the version: any build can then read any other's counts, also
// one that is older than the layout. A map that changes otherwise gets another name.
type layout struct {
	version uint32
	// numbers is the length of a row and, in bits, of a slot's filter: a
	// multiple of 64, at most Numbers.
	numbers int
	// rows is the name of the map of counts.
	rows string
	load func() (*ebpf.CollectionSpec, error)
}

// first is the layout that later ones begin like.
var first = layout{version: 1, numbers: Numbers, rows: syscallcountMapSyscallRows, load: loadSyscallcount}

// later is a layout that this build does not know: of its maps, that of first is read.
func later(version uint32) *layout {
	return &layout{version: version, numbers: Numbers, rows: first.rows}
}

// store is a folder of pinned maps of one layout.
type store struct {
	layout layout
	name   storeName
	path   string
	maps   map[string]*ebpf.Map
}

// spec returns the layout's maps and programs, sized for a number of slots, without
// those of the stub.
func (l layout) spec(slots uint32) (*ebpf.CollectionSpec, error) {
	spec, err := l.load()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{l.rows, syscallcountMapSlotSettings, syscallcountMapCarriedRows} {
		spec.Maps[name].MaxEntries = slots
	}
	delete(spec.Maps, syscallcountMapSysEnterJump)
	delete(spec.Programs, syscallcountProgSysEnterStub)
	return spec, nil
}

// openStore opens the maps of a folder. One that is missing, or whose values are
// shorter than the layout's, is an error.
func openStore(dir string, name storeName, l layout) (*store, error) {
	s := &store{layout: l, name: name, path: filepath.Join(dir, name.String()), maps: map[string]*ebpf.Map{}}
	sizes := map[string]uint32{ // bytes of a value
		l.rows:                        uint32(8 * l.numbers),
		syscallcountMapCarriedRows:    uint32(8 * l.numbers),
		syscallcountMapSlotSettings:   uint32(l.numbers/8 + 8),
		syscallcountMapCgroupSlots:    4,
		syscallcountMapCgroupHints:    8,
		syscallcountMapProcessCalls:   8,
		syscallcountMapDroppedCgroups: 8,
	}
	for mapName, size := range sizes {
		m, err := ebpf.LoadPinnedMap(filepath.Join(s.path, mapName), nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening map %s of %s: %w", mapName, name, err), s.close())
		}
		s.maps[mapName] = m
		if m.ValueSize() < size {
			err := fmt.Errorf("map %s of %s has values of %d bytes, less than %d", mapName, name, m.ValueSize(), size)
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// createStore makes a folder that is marked as not yet in use. Maps that are no part
// of a slot's row are shared with the store before where that one has them in the
// same shape.
func createStore(dir string, name storeName, l layout, before *store) (*store, error) {
	s := &store{layout: l, name: name, path: filepath.Join(dir, name.String()+newSuffix), maps: map[string]*ebpf.Map{}}
	spec, err := l.spec(name.slots)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.path, 0o700); err != nil {
		return nil, err
	}
	for mapName, mapSpec := range spec.Maps {
		step()
		m, err := createMap(mapSpec, before)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("creating map %s: %w", mapName, err), s.close())
		}
		s.maps[mapName] = m
		if err := m.Pin(filepath.Join(s.path, mapName)); err != nil {
			return nil, errors.Join(fmt.Errorf("pinning map %s: %w", mapName, err), s.close())
		}
	}
	return s, nil
}

func createMap(spec *ebpf.MapSpec, before *store) (*ebpf.Map, error) {
	shared := spec.Name == syscallcountMapProcessCalls || spec.Name == syscallcountMapDroppedCgroups
	if before != nil && shared {
		if m := before.maps[spec.Name]; m != nil && spec.Compatible(m) == nil {
			// Cloning a map forgets where it is pinned, so it is pinned anew
			// and not moved.
			return m.Clone()
		}
	}
	return ebpf.NewMap(spec)
}

// publish gives a new store its name, from when on Open takes it for one in use.
func (s *store) publish(settled bool) error {
	if settled {
		if err := os.Mkdir(filepath.Join(s.path, settledName), 0o700); err != nil {
			return err
		}
	}
	step()
	path := filepath.Join(filepath.Dir(s.path), s.name.String())
	if err := os.Rename(s.path, path); err != nil {
		return err
	}
	s.path = path
	step()
	return nil
}

// settle marks the store as complete without those before it.
func (s *store) settle() error {
	step()
	err := os.Mkdir(filepath.Join(s.path, settledName), 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

func (s *store) close() error {
	var errs []error
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// settings reads the settings of a slot. Where all numbers of a shorter row are
// counted, all are.
func (s *store) settings(slot uint32) (syscallcountSettings, error) {
	raw, err := s.maps[syscallcountMapSlotSettings].LookupBytes(slot)
	if err == nil && raw == nil {
		err = ebpf.ErrKeyNotExist
	}
	if err != nil {
		return syscallcountSettings{}, fmt.Errorf("reading the settings of slot %d: %w", slot, err)
	}
	var settings syscallcountSettings
	words := s.layout.numbers / 64
	all := true
	for i := range words {
		settings.Numbers[i] = binary.NativeEndian.Uint64(raw[8*i:])
		all = all && settings.Numbers[i] == ^uint64(0)
	}
	for i := words; all && i < len(settings.Numbers); i++ {
		settings.Numbers[i] = ^uint64(0)
	}
	settings.Flags = syscallcountFlag(binary.NativeEndian.Uint32(raw[8*words:]))
	return settings, nil
}

// putSettings writes the settings of a slot into a store of any layout.
func (s *store) putSettings(slot uint32, settings *syscallcountSettings) error {
	var raw []byte
	for _, word := range settings.Numbers[:s.layout.numbers/64] {
		raw = binary.NativeEndian.AppendUint64(raw, word)
	}
	raw = binary.NativeEndian.AppendUint32(raw, uint32(settings.Flags))
	m := s.maps[syscallcountMapSlotSettings]
	if err := m.Put(slot, filled(raw, m)); err != nil {
		return fmt.Errorf("writing the settings of slot %d: %w", slot, err)
	}
	return nil
}

// filled is a value for a map, of which the beginning is given.
func filled(raw []byte, m *ebpf.Map) []byte {
	return append(raw, make([]byte, int(m.ValueSize())-len(raw))...)
}

// addOwn adds to totals what the store's program counted for the slot.
func (s *store) addOwn(slot uint32, totals *[Numbers]uint64) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	rows := make([][]byte, cpus)
	if err := s.maps[s.layout.rows].Lookup(slot, &rows); err != nil {
		return fmt.Errorf("reading the counts of slot %d: %w", slot, err)
	}
	for _, row := range rows {
		s.addRow(row, totals)
	}
	return nil
}

// zeroOwn sets to zero what the store's program counted for the slot.
func (s *store) zeroOwn(slot uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	m := s.maps[s.layout.rows]
	rows := make([][]byte, cpus)
	for cpu := range rows {
		rows[cpu] = filled(nil, m)
	}
	if err := m.Put(slot, rows); err != nil {
		return fmt.Errorf("zeroing the counts of slot %d: %w", slot, err)
	}
	return nil
}

// carried returns what was counted before the store was made, or nil.
func (s *store) carried(slot uint32) (*[Numbers]uint64, error) {
	raw, err := s.maps[syscallcountMapCarriedRows].LookupBytes(slot)
	if err != nil {
		return nil, fmt.Errorf("reading the carried counts of slot %d: %w", slot, err)
	}
	if raw == nil {
		return nil, nil
	}
	var totals [Numbers]uint64
	s.addRow(raw, &totals)
	return &totals, nil
}

func (s *store) addRow(raw []byte, totals *[Numbers]uint64) {
	for i := range s.layout.numbers {
		totals[i] += binary.NativeEndian.Uint64(raw[8*i:])
	}
}

// putCarried sets what was counted before the store was made.
func (s *store) putCarried(slot uint32, totals *[Numbers]uint64) error {
	m := s.maps[syscallcountMapCarriedRows]
	raw := make([]byte, 0, m.ValueSize())
	for _, n := range totals[:s.layout.numbers] {
		raw = binary.NativeEndian.AppendUint64(raw, n)
	}
	if err := m.Put(slot, filled(raw, m)); err != nil {
		return fmt.Errorf("writing the carried counts of slot %d: %w", slot, err)
	}
	return nil
}

// copyCgroups copies the registered cgroups of another store, until nothing is left
// that its own inherit_slot program does not know. That program runs for both stores
// already, so what is made under a cgroup that was copied needs no copy.
func (s *store) copyCgroups(from *store) error {
	source, target := from.maps[syscallcountMapCgroupSlots], s.maps[syscallcountMapCgroupSlots]
	for added := true; added; {
		added = false
		known, err := cgroupsOf(target)
		if err != nil {
			return err
		}
		wanted, err := cgroupsOf(source)
		if err != nil {
			return err
		}
		for id, slot := range wanted {
			if _, ok := known[id]; ok || slot >= s.name.slots {
				continue
			}
			if err := s.addCgroup(id, slot); err != nil {
				return err
			}
			added = true
			// Removed meanwhile: the other store's program saw it, this
			// store's perhaps before the Put.
			var still uint32
			if err := source.Lookup(id, &still); errors.Is(err, ebpf.ErrKeyNotExist) {
				if err := s.dropCgroup(id); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// cgroupsOf reads a table of cgroups, while the kernel may change it.
func cgroupsOf(m *ebpf.Map) (map[uint64]uint32, error) {
	found := map[uint64]uint32{}
	err := entriesOf(m, func(id uint64, slot uint32) { found[id] = slot })
	return found, err
}

// entriesOf visits the entries of a hash table in as few system calls as the kernel
// allows. An entry may be visited twice if the table changes meanwhile.
func entriesOf[K, V any](m *ebpf.Map, visit func(K, V)) error {
	const batch = 4096
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for first := true; ; first = false {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			if first {
				return iterate(m, visit)
			}
			return fmt.Errorf("reading map %s: %w", m, err)
		}
		for i := range n {
			visit(keys[i], values[i])
		}
		if done {
			return nil
		}
	}
}

// iterate is entriesOf for kernels that have no batches (before Linux 5.6).
func iterate[K, V any](m *ebpf.Map, visit func(K, V)) error {
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		visit(key, value)
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("reading map %s: %w", m, err)
	}
	return nil
}
