// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"

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

// counterTable is the rows of all slots: the own map, and those that earlier
// builds left in other layouts or sizes. A row is the sum over all maps, so that
// a change of builds carries nothing over, and loses and doubles nothing
// whenever it is interrupted. An old map goes when its rows are zero.
type counterTable struct {
	own *ebpf.Map
	old []*oldCounters
}

type oldCounters struct {
	*ebpf.Map
	path string
	rows reflect.Value // []([valueSize/8]uint64), one per CPU
}

func openCounters(dir string, version int, spec *ebpf.MapSpec) (t *counterTable, err error) {
	t = &counterTable{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	pin := mapPin("counters", version, spec.MaxEntries)
	if t.own, err = adoptMap(filepath.Join(dir, pin), spec, nil); err != nil {
		return t, err
	}
	list, err := names(dir)
	if err != nil {
		return t, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return t, fmt.Errorf("counting CPUs: %w", err)
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
		row := reflect.ArrayOf(int(m.ValueSize()/8), reflect.TypeFor[uint64]())
		t.old = append(t.old, &oldCounters{m, path, reflect.MakeSlice(reflect.SliceOf(row), cpus, cpus)})
	}
	return t, nil
}

// read returns a slot's row.
func (t *counterTable) read(slot uint32) (Counters, error) {
	var sum Counters
	var rows []l4firewallCounters
	if err := t.own.Lookup(slot, &rows); err != nil {
		return sum, fmt.Errorf("reading the counters of slot %d: %w", slot, err)
	}
	for _, old := range t.old {
		more, err := old.read(slot)
		if err != nil {
			return sum, err
		}
		rows = append(rows, more...)
	}
	for i := range rows {
		sum.add(&rows[i])
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

// read returns a slot's rows in the own layout: layouts begin alike.
func (o *oldCounters) read(slot uint32) ([]l4firewallCounters, error) {
	if slot >= o.MaxEntries() {
		return nil, nil
	}
	rows := reflect.New(o.rows.Type())
	rows.Elem().Set(o.rows)
	if err := o.Lookup(slot, rows.Interface()); err != nil {
		return nil, fmt.Errorf("reading earlier counters of slot %d: %w", slot, err)
	}
	list := make([]l4firewallCounters, rows.Elem().Len())
	for i := range list {
		var content bytes.Buffer
		if err := binary.Write(&content, binary.NativeEndian, rows.Elem().Index(i).Interface()); err != nil {
			return nil, err
		}
		content.Write(make([]byte, binary.Size(list[i])))
		if err := binary.Read(&content, binary.NativeEndian, &list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// zero forgets what was counted for a slot.
func (t *counterTable) zero(slot uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("counting CPUs: %w", err)
	}
	errs := []error{t.own.Put(slot, make([]l4firewallCounters, cpus))}
	for _, old := range t.old {
		if slot < old.MaxEntries() {
			errs = append(errs, old.Put(slot, reflect.MakeSlice(old.rows.Type(), cpus, cpus).Interface()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("zeroing the counters of slot %d: %w", slot, err)
	}
	return nil
}

// sweep removes the maps of earlier builds in which nothing is counted any more.
func (t *counterTable) sweep() error {
	var kept []*oldCounters
	for _, old := range t.old {
		empty := true
		for slot := uint32(0); empty && slot < old.MaxEntries(); slot++ {
			rows, err := old.read(slot)
			if err != nil {
				return err
			}
			for _, row := range rows {
				empty = empty && row == l4firewallCounters{}
			}
		}
		if !empty {
			kept = append(kept, old)
			continue
		}
		if err := errors.Join(os.Remove(old.path), old.Close()); err != nil {
			return fmt.Errorf("removing earlier counters: %w", err)
		}
	}
	t.old = kept
	return nil
}

func (t *counterTable) close() error {
	errs := []error{t.own.Close()}
	for _, old := range t.old {
		errs = append(errs, old.Close())
	}
	return errors.Join(errs...)
}

// flowTable is the flows of UDP that live.
type flowTable struct {
	flows, events *ebpf.Map
	evictions     uint64
}

// openFlows adopts the table of an earlier agent, or copies one of another size.
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
	t.flows, err = adoptMap(filepath.Join(dir, mapPin("flows", version, spec.MaxEntries)), spec, func(m *ebpf.Map) error {
		return copyFlows(dir, m)
	})
	return t, err
}

// copyFlows takes over what another size of table holds.
func copyFlows(dir string, to *ebpf.Map) error {
	list, err := names(dir)
	if err != nil {
		return err
	}
	for _, name := range list {
		if _, ok := entriesOf(name, "flows"); !ok {
			continue
		}
		from, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			return err
		}
		defer from.Close()
		if from.KeySize() != to.KeySize() || from.ValueSize() != to.ValueSize() {
			continue
		}
		var flow l4firewallFlow
		var seen l4firewallSeen
		for i := from.Iterate(); i.Next(&flow, &seen); {
			if err := to.Put(flow, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// countEvictions returns how many flows the table has forgotten to make room:
// those that it ever held less those that it holds.
func (t *flowTable) countEvictions() (uint64, error) {
	var cpus []l4firewallEvents
	if err := t.events.Lookup(uint32(0), &cpus); err != nil {
		return 0, fmt.Errorf("reading the flow table's events: %w", err)
	}
	var made uint64
	for _, cpu := range cpus {
		made += cpu.Flows
	}
	// The kernel hands entries to each CPU by up to 128 at a time, and so evicts
	// before the table is full.
	if made-t.evictions <= uint64(max(0, int64(t.flows.MaxEntries())-int64(len(cpus))*128)) {
		return t.evictions, nil
	}
	held, err := t.count()
	if err != nil {
		return 0, fmt.Errorf("counting the flow table's entries: %w", err)
	}
	if made > held { // Less only while flows come in.
		t.evictions = max(t.evictions, made-held)
	}
	return t.evictions, nil
}

func (t *flowTable) count() (uint64, error) {
	const batch = 4096
	var cursor ebpf.MapBatchCursor
	flows, seen := make([]l4firewallFlow, batch), make([]l4firewallSeen, batch)
	var held uint64
	for {
		n, err := t.flows.BatchLookup(&cursor, flows, seen, nil)
		held += uint64(n)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return held, nil
		case errors.Is(err, ebpf.ErrNotSupported):
			return t.countOneByOne()
		case err != nil:
			return 0, err
		case held > math.MaxUint32:
			return 0, errors.New("the table has no end")
		}
	}
}

func (t *flowTable) countOneByOne() (held uint64, err error) {
	var flow l4firewallFlow
	var seen l4firewallSeen
	i := t.flows.Iterate()
	for i.Next(&flow, &seen) {
		held++
	}
	return held, i.Err()
}

func (t *flowTable) close() error { return closeMaps(t.flows, t.events) }
