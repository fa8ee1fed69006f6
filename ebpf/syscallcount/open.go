// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
)

// maxSlots is what fits into a hint.
const maxSlots = 1 << 16

// Options say where the pins are and how many pods there can be.
type Options struct {
	// Dir is a directory in a BPF file system that exists. The pins of this
	// package are in a folder of it.
	Dir string
	// Slots is the number of pods that can be watched at a time: slots are 0 to
	// Slots-1, at most 65,535.
	Slots uint32
}

// Open loads the programs and adopts what an earlier process pinned in o.Dir: slots
// that it watched are watched on, and no call is lost or counted twice, also where
// that process had another layout of the maps, be it an earlier or a later one, or
// another number of slots, and wherever it was killed. Pins that this build does not
// understand are deleted, with their counts: see Discarded. One process at a time can hold the pins;
// the others get bpffs.ErrLocked. The other errors are *kernelfeature.Unsupported
// where Probe would return one.
func Open(o Options) (*Counter, error) {
	return opener{Options: o, current: current, known: known}.open()
}

// opener is Open with layouts that a test can choose.
type opener struct {
	Options
	current layout
	known   []layout
}

func (o opener) open() (*Counter, error) {
	c, err := o.start()
	if err != nil {
		return nil, fmt.Errorf("opening the system call counter: %w", err)
	}
	if err := o.adopt(c); err != nil {
		return nil, fmt.Errorf("opening the system call counter: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

// start takes the lock and makes what does not depend on earlier pins.
func (o opener) start() (*Counter, error) {
	if o.Slots == 0 || o.Slots > maxSlots {
		return nil, fmt.Errorf("%d slots, not 1 to %d", o.Slots, maxSlots)
	}
	if err := bpffs.Check(o.Dir); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, explain(err)
	}
	dir := filepath.Join(o.Dir, pinDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	lock, err := bpffs.Lock(dir)
	if err != nil {
		return nil, err
	}
	barrier, err := newFence()
	if err != nil {
		return nil, errors.Join(explain(err), lock.Close())
	}
	return &Counter{dir: dir, lock: lock, fence: barrier, slots: o.Slots, watched: map[uint32]*watch{}, unclean: map[uint32]syscallcountFlag{}}, nil
}

// adopt brings the pins, whatever they are, to one store of this layout with this
// program, or to none of it where nothing is watched.
func (o opener) adopt(c *Counter) error {
	found, err := survey(c.dir, func(version uint32) bool { return o.layout(version) != nil })
	if err != nil {
		return err
	}
	for _, name := range found.garbage {
		if err := removeTree(filepath.Join(c.dir, name)); err != nil {
			return err
		}
	}
	chain := o.openChain(c, &found)
	fresh, err := o.choose(c, &chain)
	if err != nil {
		return errors.Join(err, closeStores(chain))
	}
	err = o.takeOver(c, chain, fresh)
	if err == nil && len(chain) > 0 {
		err = c.carryOver(chain)
	}
	if err = errors.Join(err, closeStores(chain)); err != nil {
		return err
	}
	doomed := found.unknown
	for _, s := range chain {
		doomed = append(doomed, s.name.String())
	}
	for _, name := range doomed {
		if err := removeTree(filepath.Join(c.dir, name)); err != nil {
			return err
		}
	}
	return c.finishUnwatch()
}

// layout is that of a version; nil where it cannot be read.
func (o opener) layout(version uint32) *layout {
	newest := uint32(0)
	for i := range o.known {
		if o.known[i].version == version {
			return &o.known[i]
		}
		newest = max(newest, o.known[i].version)
	}
	if version > newest {
		return later(version)
	}
	return nil
}

// openChain opens the stores in use; what cannot be read counts as unknown.
func (o opener) openChain(c *Counter, found *pinned) []*store {
	var chain []*store
	for _, name := range found.chain {
		opened, err := openStore(c.dir, name, *o.layout(name.version))
		if err != nil {
			found.unknown = append(found.unknown, name.String())
			continue
		}
		chain = append(chain, opened)
	}
	c.discarded = slices.Clone(found.unknown)
	return chain
}

// choose sets c.store: the last of the chain, which it takes off, if that has this
// build's layout, else a new one. fresh says that it is new.
func (o opener) choose(c *Counter, chain *[]*store) (fresh bool, err error) {
	spec, err := o.current.spec(o.Slots)
	if err != nil {
		return false, err
	}
	var last *store
	if n := len(*chain); n > 0 {
		last = (*chain)[n-1]
		if last.name.version == o.current.version && last.name.slots == o.Slots && last.fits(spec) {
			c.store = last
			*chain = (*chain)[:n-1]
		}
	}
	if c.store == nil {
		generation, err := nextGeneration(c.dir)
		if err != nil {
			return false, err
		}
		name := storeName{version: o.current.version, slots: o.Slots, generation: generation}
		if c.store, err = createStore(c.dir, name, o.current, last); err != nil {
			return false, explain(err)
		}
		fresh = true
	}
	return fresh, c.load(o.current)
}

// fits tells whether the maps are those of spec.
func (s *store) fits(spec *ebpf.CollectionSpec) bool {
	for name, wanted := range spec.Maps {
		if s.maps[name] == nil || wanted.Compatible(s.maps[name]) != nil {
			return false
		}
	}
	return true
}

// takeOver makes this process's programs count into c.store. chain are the stores
// whose programs counted so far.
func (o opener) takeOver(c *Counter, chain []*store, fresh bool) error {
	if fresh && len(chain) > 0 {
		if err := c.copySettings(chain[len(chain)-1]); err != nil {
			return err
		}
	}
	if err := c.readSettings(); err != nil {
		return err
	}
	if len(c.watched) > 0 {
		if err := c.followCgroups(); err != nil {
			return err
		}
		if fresh {
			if err := c.store.copyCgroups(chain[len(chain)-1]); err != nil {
				return err
			}
		}
	}
	if fresh {
		if err := c.store.publish(len(chain) == 0); err != nil {
			return err
		}
	}
	return c.takeHook()
}

func closeStores(stores []*store) error {
	var errs []error
	for _, s := range stores {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

func storeNames(stores []storeName) []string {
	var names []string
	for _, name := range stores {
		names = append(names, name.String())
	}
	return names
}
