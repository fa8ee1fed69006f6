// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// batchBytes bounds the memory that reading takes: rows × CPUs × 4 KiB.
const batchBytes = 1 << 20

// batch holds the rows of some slots while they are read: for each slot one row per
// possible CPU.
type batch struct {
	cpus  int
	slots []uint32
	rows  []row
	// single says that the kernel has no batches for this kind of map (before
	// Linux 5.13).
	single bool
}

func (b *batch) prepare() error {
	if b.rows != nil {
		return nil
	}
	var err error
	if b.cpus, err = ebpf.PossibleCPU(); err != nil {
		return err
	}
	slots := max(1, batchBytes/(b.cpus*8*Numbers))
	b.slots = make([]uint32, slots)
	b.rows = make([]row, slots*b.cpus)
	return nil
}

// sum adds up the rows of the i-th slot of the batch.
func (b *batch) sum(i int, totals *[Numbers]uint64) {
	*totals = b.rows[i*b.cpus].Calls
	for cpu := 1; cpu < b.cpus; cpu++ {
		addTo(totals, &b.rows[i*b.cpus+cpu].Calls)
	}
}

// Read calls visit with the counts of every watched slot, in the order of the slots:
// calls by system call number since the slot is watched, on all CPUs. The array is
// reused after visit returns.
func (c *Counter) Read(visit func(slot uint32, counts *[Numbers]uint64)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.watched) == 0 {
		return nil
	}
	if err := c.buffer.prepare(); err != nil {
		return err
	}
	if !c.buffer.single {
		err := c.readBatches(visit)
		if !errors.Is(err, errNoBatches) {
			return err
		}
		c.buffer.single = true
	}
	return c.readSingly(visit)
}

// errNoBatches says that nothing was read, and a batch cannot be.
var errNoBatches = errors.New("no batch lookups")

// readBatches reads slots from 0 to the last that is watched, many in a call: low
// slots are taken first, so few in between are free.
func (c *Counter) readBatches(visit func(uint32, *[Numbers]uint64)) error {
	var cursor ebpf.MapBatchCursor
	left := len(c.watched)
	for first := true; left > 0; first = false {
		n, err := c.rows().BatchLookup(&cursor, c.buffer.slots, c.buffer.rows, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			if first {
				return errNoBatches
			}
			return fmt.Errorf("reading the counts: %w", err)
		}
		for i, slot := range c.buffer.slots[:n] {
			if w, ok := c.watched[slot]; ok {
				left--
				c.show(slot, i, w, visit)
			}
		}
		if done {
			return nil
		}
	}
	return nil
}

func (c *Counter) readSingly(visit func(uint32, *[Numbers]uint64)) error {
	slots := make([]uint32, 0, len(c.watched))
	for slot := range c.watched {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	rows := c.buffer.rows[:c.buffer.cpus]
	for _, slot := range slots {
		if err := c.rows().Lookup(slot, rows); err != nil {
			return fmt.Errorf("reading the counts of slot %d: %w", slot, err)
		}
		c.show(slot, 0, c.watched[slot], visit)
	}
	return nil
}

func (c *Counter) rows() *ebpf.Map { return c.store.maps[c.store.layout.rows] }

// show calls visit with the i-th slot of the batch.
func (c *Counter) show(slot uint32, i int, w *watch, visit func(uint32, *[Numbers]uint64)) {
	var totals [Numbers]uint64
	c.buffer.sum(i, &totals)
	if w.carried != nil {
		addTo(&totals, w.carried)
	}
	visit(slot, &totals)
}

// ReadPIDs calls visit for every process and system call of the slots that are watched
// with PerPID. Process IDs are those of the node's initial namespace.
func (c *Counter) ReadPIDs(visit func(slot, pid uint32, number uint16, count uint64)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := false
	for _, w := range c.watched {
		wanted = wanted || w.settings.Flags&flagPerPID != 0
	}
	if !wanted {
		return nil
	}
	return entriesOf(c.store.maps[syscallcountMapProcessCalls], func(call syscallcountProcessCall, n uint64) {
		w, ok := c.watched[call.Slot]
		if ok && w.settings.Flags&flagPerPID != 0 && n > 0 {
			visit(call.Slot, call.Process, uint16(call.Number), n)
		}
	})
}
