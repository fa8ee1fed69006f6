// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Counters are what was counted for a pod since it was attached.
type Counters struct {
	// Connections by Direction and Verdict: TCP connections, one for a SYN
	// however often it is sent, and flows of UDP.
	Connections [2][3]uint64
	// Packets by Direction and Protocol: all that the programs saw, loopback and
	// blocked ones included.
	Packets [2][2]uint64
}

// counterTable is the rows of all slots: the own map first, and those that
// earlier builds left in other layouts or sizes. A row is the sum over all maps, so
// that a change of builds carries nothing over, and loses and doubles nothing
// whenever it is interrupted. An old map goes when its rows are zero.
type counterTable struct {
	maps []*counterMap
	cpus int
}

// counterMap is one map, in whatever layout: layouts begin alike.
type counterMap struct {
	*ebpf.Map
	path string
	rows reflect.Type // []struct with as many words as a value has
}

func openCounters(dir string, version int, spec *ebpf.MapSpec) (t *counterTable, err error) {
	t = &counterTable{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.cpus, err = ebpf.PossibleCPU(); err != nil {
		return t, fmt.Errorf("counting CPUs: %w", err)
	}
	pin := mapPin("counters", version, spec.MaxEntries)
	own, err := adoptMap(filepath.Join(dir, pin), spec, nil)
	if err != nil {
		return t, err
	}
	t.take(own, filepath.Join(dir, pin))
	list, err := names(dir)
	if err != nil {
		return t, err
	}
	for _, name := range list {
		if _, ok := entriesOf(name, "counters"); !ok || name == pin {
			continue
		}
		path := filepath.Join(dir, name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return t, fmt.Errorf("opening map %s: %w", path, err)
		}
		t.take(m, path)
	}
	return t, nil
}

func (t *counterTable) take(m *ebpf.Map, path string) {
	words := reflect.ArrayOf(int(m.ValueSize()/8), reflect.TypeFor[uint64]())
	t.maps = append(t.maps, &counterMap{m, path, reflect.SliceOf(words)})
}

// own is the map that the own programs count in.
func (t *counterTable) own() *ebpf.Map { return t.maps[0].Map }

// read returns a slot's row.
func (t *counterTable) read(slot uint32) (sum Counters, err error) {
	for _, m := range t.maps {
		rows, err := m.read(slot)
		if err != nil {
			return sum, fmt.Errorf("reading the counters of slot %d: %w", slot, err)
		}
		for i := range rows {
			sum.add(&rows[i])
		}
	}
	return sum, nil
}

func (c *Counters) add(row *l4firewallCounters) {
	for direction := range c.Connections {
		for verdict := range c.Connections[direction] {
			c.Connections[direction][verdict] += row.Connections[direction][verdict]
		}
		for protocol := range c.Packets[direction] {
			c.Packets[direction][protocol] += row.Packets[direction][protocol]
		}
	}
}

// read returns a slot's rows, one for each CPU.
func (m *counterMap) read(slot uint32) (rows []l4firewallCounters, err error) {
	size := binary.Size(l4firewallCounters{})
	switch {
	case slot >= m.MaxEntries():
		return nil, nil
	case int(m.ValueSize()) == size:
		err = m.Lookup(slot, &rows)
		return rows, err
	}
	raw := reflect.New(m.rows)
	if err := m.Lookup(slot, raw.Interface()); err != nil {
		return nil, err
	}
	rows = make([]l4firewallCounters, raw.Elem().Len())
	for i := range rows {
		content, err := binary.Append(nil, binary.NativeEndian, raw.Elem().Index(i).Interface())
		if err != nil {
			return nil, err
		}
		content = append(content, make([]byte, size)...)
		if _, err := binary.Decode(content, binary.NativeEndian, &rows[i]); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// zero forgets what was counted for a slot.
func (t *counterTable) zero(slot uint32) error {
	for _, m := range t.maps {
		if slot >= m.MaxEntries() {
			continue
		}
		if err := m.Put(slot, reflect.MakeSlice(m.rows, t.cpus, t.cpus).Interface()); err != nil {
			return fmt.Errorf("zeroing the counters of slot %d: %w", slot, err)
		}
	}
	return nil
}

// sweep removes the maps of earlier builds in which nothing is counted any more.
func (t *counterTable) sweep() error {
	kept := t.maps[:1]
	for _, m := range t.maps[1:] {
		empty, err := m.empty()
		if err == nil && empty {
			err = errors.Join(os.Remove(m.path), m.Close())
		} else {
			kept = append(kept, m)
		}
		if err != nil {
			return fmt.Errorf("removing earlier counters: %w", err)
		}
	}
	t.maps = kept
	return nil
}

func (m *counterMap) empty() (bool, error) {
	for slot := range m.MaxEntries() {
		rows, err := m.read(slot)
		if err != nil {
			return false, err
		}
		for _, row := range rows {
			if row != (l4firewallCounters{}) {
				return false, nil
			}
		}
	}
	return true, nil
}

func (t *counterTable) close() error {
	var errs []error
	for _, m := range t.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// flowTable is the flows of UDP that live.
type flowTable struct {
	flows, events *ebpf.Map
	keys          flowKeys
}

// flowKeys are those of the hashes that stand for a flow. Whoever could tell them could
// have packets taken for replies, and the flows of others forgotten.
type flowKeys [3][14]uint64

// waysPerBucket is WAYS in C. When as many flows live as the table is made for, one
// way of a bucket is taken in the mean, and all in few: one flow of 1,400 is forgotten.
const waysPerBucket = 5

// bucketsFor returns how many buckets a table for so many flows has.
func bucketsFor(flows uint32) uint32 {
	return 1 << bits.Len32(max(flows, 2)-1)
}

func drawFlowKeys() (keys flowKeys) {
	for i := range keys {
		for j := range keys[i] {
			keys[i][j] = rand.Uint64()
		}
	}
	return keys
}

var seedSpec = &ebpf.MapSpec{
	Name: "flow_keys", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(flowKeys{})), MaxEntries: 1,
}

func openFlows(dir string, version int, spec, events *ebpf.MapSpec) (t *flowTable, err error) {
	t = &flowTable{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.events, err = adoptMap(filepath.Join(dir, mapPin("events", version, events.MaxEntries)), events, nil); err != nil {
		return t, err
	}
	if t.flows, err = adoptMap(filepath.Join(dir, mapPin("flows", version, spec.MaxEntries)), spec, nil); err != nil {
		return t, err
	}
	seed, err := adoptMap(filepath.Join(dir, mapPin("seed", version, 1)), seedSpec, func(m *ebpf.Map) error {
		return m.Put(uint32(0), drawFlowKeys())
	})
	if err != nil {
		return t, err
	}
	return t, errors.Join(seed.Lookup(uint32(0), &t.keys), seed.Close())
}

// countEvictions returns how many flows that lived were forgotten to make room.
func (t *flowTable) countEvictions() (uint64, error) {
	var cpus []l4firewallEvents
	if err := t.events.Lookup(uint32(0), &cpus); err != nil {
		return 0, fmt.Errorf("reading the flow table's events: %w", err)
	}
	var all uint64
	for _, cpu := range cpus {
		all += cpu.Evictions
	}
	return all, nil
}

func (t *flowTable) close() error { return closeMaps(t.flows, t.events) }
