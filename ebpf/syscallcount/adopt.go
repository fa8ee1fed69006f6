// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// load loads the programs with the maps of the store.
func (c *Counter) load(l layout) error {
	spec, err := l.spec(c.slots)
	if err != nil {
		return err
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: c.store.maps})
	if err != nil {
		return explain(fmt.Errorf("loading the programs: %w", err))
	}
	defer loaded.Close()
	c.programs = map[string]*ebpf.Program{}
	for name := range spec.Programs {
		c.programs[name] = loaded.DetachProgram(name)
	}
	return nil
}

// copySettings copies the settings of the watched slots from another store.
func (c *Counter) copySettings(from *store) error {
	for slot := range from.name.slots {
		settings, err := from.settings(slot)
		if err != nil {
			return err
		}
		if settings.Flags&flagWatched == 0 {
			continue
		}
		if slot >= c.slots {
			c.discarded = append(c.discarded, fmt.Sprintf("%s: slot %d", from.name, slot))
			continue
		}
		step()
		if err := c.store.putSettings(slot, &settings); err != nil {
			return err
		}
	}
	return nil
}

// readSettings finds out which slots are watched, and which were not cleaned up.
func (c *Counter) readSettings() error {
	for slot := range c.slots {
		settings, err := c.store.settings(slot)
		if err != nil {
			return err
		}
		switch {
		case settings.Flags&flagWatched != 0:
			carried, err := c.store.carried(slot)
			if err != nil {
				return err
			}
			c.watched[slot] = &watch{settings, carried}
		case settings.Flags&flagUnclean != 0:
			c.unclean[slot] = settings.Flags
		}
	}
	return nil
}

// takeHook makes the stub call this process's program where something is watched.
func (c *Counter) takeHook() error {
	var err error
	if c.hook, err = adoptHook(c.dir); err != nil {
		return err
	}
	if len(c.watched) == 0 {
		return c.detach()
	}
	if c.hook == nil {
		c.hook, err = attachHook(c.dir, c.programs[syscallcountProgCountSyscall])
		return err
	}
	return c.hook.set(c.programs[syscallcountProgCountSyscall])
}

// carryOver takes the counts of the stores before into c.store, when no program can
// write to them any more. It sets values and adds nothing: it may be done again.
func (c *Counter) carryOver(chain []*store) error {
	if err := c.fence.wait(); err != nil {
		return err
	}
	for slot, w := range c.watched {
		var totals [Numbers]uint64
		for i, s := range chain {
			if slot >= s.name.slots {
				continue
			}
			if err := s.addOwn(slot, &totals); err != nil {
				return err
			}
			if i > 0 {
				continue
			}
			carried, err := s.carried(slot)
			if err != nil {
				return err
			}
			if carried != nil {
				addTo(&totals, carried)
			}
		}
		step()
		if err := c.store.putCarried(slot, &totals); err != nil {
			return err
		}
		w.carried = &totals
	}
	return c.store.settle()
}

func addTo(totals, more *[Numbers]uint64) {
	for i, n := range more {
		totals[i] += n
	}
}
