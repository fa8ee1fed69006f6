// SPDX-License-Identifier: Apache-2.0

package l4firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
)

// grace is how long a policy that no pod has any more is kept: a config that is
// changed to and fro finds it again.
const grace = time.Second

// policyTable is the policies in the kernel: each stands once in the outer map,
// at an index that attachments refer to, and is pinned as long as it does.
// Its methods are not safe for concurrent use.
type policyTable struct {
	dir     string
	version int
	inner   *ebpf.MapSpec
	outer   *ebpf.Map
	// none stands in the place of policies that are gone; barrier is an outer
	// map that no program uses.
	none, barrier *ebpf.Map
	byKey         map[policyKey]*placed
	byIndex       map[uint32]*placed
	next          uint32 // where the search for a free index goes on
	spare         *spare
}

// spare is an empty policy that stands in the outer map already: the next new one is
// written into it, and need not wait for running programs. None of them can know its
// index.
type spare struct {
	*placed
	inner *ebpf.Map
}

// spareKey is no policy's: those are digests.
var spareKey policyKey

// placed is a policy that stands in the outer map.
type placed struct {
	policyPin
	references int // attachments that have its index
	unused     time.Time
}

// policyEntries is enough for every pod to change from a policy of its own to
// another at once.
func policyEntries(slots uint32) uint32 { return 2*slots + 64 }

// openPolicies adopts the table of an earlier agent. used are the indexes that
// attachments refer to: their policies keep them in whatever layout they come.
func openPolicies(dir string, version int, spec *ebpf.MapSpec, used map[uint32]int) (t *policyTable, err error) {
	inner := spec.InnerMap.Copy()
	inner.Name = "policy"
	t = &policyTable{
		dir: dir, version: version, inner: inner,
		byKey: map[policyKey]*placed{}, byIndex: map[uint32]*placed{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.none, err = t.newInner(&Policy{}); err != nil {
		return t, err
	}
	barrier := spec.Copy()
	barrier.Name, barrier.MaxEntries = "barrier", 1
	if t.barrier, err = ebpf.NewMap(barrier); err != nil {
		return t, fmt.Errorf("making an outer map: %w", err)
	}
	pins, err := t.pins()
	if err != nil {
		return t, err
	}
	t.outer, err = adoptMap(filepath.Join(dir, mapPin("policies", version, spec.MaxEntries)), spec, func(outer *ebpf.Map) error {
		return t.remake(outer, pins, used)
	})
	if err != nil {
		return t, err
	}
	return t, t.register(used)
}

func (t *policyTable) pins() ([]policyPin, error) {
	list, err := names(t.dir)
	var pins []policyPin
	for _, name := range list {
		if pin, ok := parsePolicyPin(name); ok {
			pins = append(pins, pin)
		}
	}
	return pins, err
}

// remake fills a new outer map with the policies in use, from the pins of an
// earlier agent, whose maps had another size or layout.
func (t *policyTable) remake(outer *ebpf.Map, pins []policyPin, used map[uint32]int) error {
	var own []policyPin
	have := map[uint32]bool{}
	for _, pin := range pins {
		if pin.version == t.version && used[pin.index] > 0 {
			own, have[pin.index] = append(own, pin), true
		}
	}
	for _, pin := range pins {
		if used[pin.index] == 0 || have[pin.index] {
			continue
		}
		if err := t.translate(pin); err != nil {
			return fmt.Errorf("translating %v: %w", pin, err)
		}
		pin.version = t.version
		own, have[pin.index] = append(own, pin), true
	}
	for _, pin := range own {
		inner, err := ebpf.LoadPinnedMap(filepath.Join(t.dir, pin.String()), nil)
		if err == nil {
			err = errors.Join(outer.Put(pin.index, inner), inner.Close())
		}
		if err != nil {
			return fmt.Errorf("adopting %v: %w", pin, err)
		}
	}
	return nil
}

// translate pins a policy that is pinned in another layout in this one.
func (t *policyTable) translate(pin policyPin) error {
	old, err := ebpf.LoadPinnedMap(filepath.Join(t.dir, pin.String()), nil)
	if err != nil {
		return err
	}
	defer old.Close()
	words := make([]uint64, old.ValueSize()/8)
	if err := old.Lookup(uint32(0), words); err != nil {
		return err
	}
	if len(words) < rulesWords {
		return fmt.Errorf("%d words are too short for a policy", len(words))
	}
	inner, err := t.newInner(policyOf(words))
	if err != nil {
		return err
	}
	defer inner.Close()
	pin.version = t.version
	return inner.Pin(filepath.Join(t.dir, pin.String()))
}

// register learns what stands in the outer map, from the pins. Other layouts'
// pins are of no use any more; they are removed by sweep.
func (t *policyTable) register(used map[uint32]int) error {
	pins, err := t.pins()
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if pin.version != t.version {
			continue
		}
		if err := t.adoptPolicy(&placed{policyPin: pin, references: used[pin.index], unused: time.Now()}); err != nil {
			return fmt.Errorf("adopting %v: %w", pin, err)
		}
	}
	for index, references := range used {
		if t.byIndex[index] == nil { // Its pin has been removed by hand: it stands there, but nobody can tell what it is.
			t.byIndex[index] = &placed{policyPin: policyPin{index: index}, references: references}
		}
	}
	return nil
}

// adoptPolicy takes over what an earlier agent pinned. That one may have been killed
// before it stood in the outer map, or the outer map is a new one: what nobody has
// then goes.
func (t *policyTable) adoptPolicy(entry *placed) error {
	if entry.references > 0 {
		t.enter(entry)
		return nil
	}
	path := filepath.Join(t.dir, entry.String())
	inner, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return err
	}
	stands, err := t.stands(entry.index, inner)
	switch {
	case err != nil:
		return errors.Join(err, inner.Close())
	case !stands:
		return errors.Join(removePin(path), inner.Close())
	case entry.key == spareKey && t.spare == nil:
		t.keep(entry, inner)
		return nil
	}
	t.enter(entry)
	return inner.Close()
}

// stands tells whether it is that map that stands in the outer one at an index.
func (t *policyTable) stands(index uint32, inner *ebpf.Map) (bool, error) {
	info, err := inner.Info()
	if err != nil {
		return false, err
	}
	id, _ := info.ID()
	var found ebpf.MapID
	err = t.outer.Lookup(index, &found)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return found == id, err
}

// keep makes an entry the spare.
func (t *policyTable) keep(entry *placed, inner *ebpf.Map) {
	entry.references = 1 // the table's own
	t.byIndex[entry.index] = entry
	t.spare = &spare{entry, inner}
}

// makeSpare makes sure that there is a spare.
func (t *policyTable) makeSpare() error {
	if t.spare != nil {
		return nil
	}
	index, err := t.freeIndex()
	if err != nil {
		return err
	}
	inner, err := t.newInner(&Policy{})
	if err != nil {
		return err
	}
	entry := &placed{policyPin: policyPin{t.version, index, spareKey}}
	if err = inner.Pin(filepath.Join(t.dir, entry.String())); err == nil {
		err = t.put([]*placed{entry}, []*ebpf.Map{inner})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("making a spare policy: %w", err), inner.Close(), removePin(filepath.Join(t.dir, entry.String())))
	}
	t.keep(entry, inner)
	return nil
}

// useSpare lets a policy stand where the spare does; false where there is none.
func (t *policyTable) useSpare(p *Policy) (used bool, err error) {
	if t.spare == nil {
		return false, nil
	}
	if err := t.spare.inner.Put(uint32(0), p.words(int(t.inner.ValueSize/8))); err != nil {
		return false, fmt.Errorf("writing a policy: %w", err)
	}
	entry := &placed{policyPin: policyPin{t.version, t.spare.index, p.key}, unused: time.Now()}
	if err := os.Rename(filepath.Join(t.dir, t.spare.String()), filepath.Join(t.dir, entry.String())); err != nil {
		return false, fmt.Errorf("renaming a policy's pin: %w", err)
	}
	inner := t.spare.inner
	t.spare = nil
	t.enter(entry)
	return true, inner.Close()
}

// sweep removes what is left of other layouts and sizes, the outer map first:
// without it nobody takes the rest for complete.
func (t *policyTable) sweep() error {
	list, err := names(t.dir)
	if err != nil {
		return err
	}
	var stale []string
	for _, name := range list {
		if _, ok := entriesOf(name, "policies"); ok && name != mapPin("policies", t.version, t.outer.MaxEntries()) {
			stale = append(stale, name)
		}
	}
	for _, name := range list {
		if pin, ok := parsePolicyPin(name); ok && pin.version != t.version {
			stale = append(stale, name)
		}
	}
	for _, name := range stale {
		if err := os.Remove(filepath.Join(t.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (t *policyTable) newInner(p *Policy) (*ebpf.Map, error) {
	inner, err := ebpf.NewMap(t.inner)
	if err != nil {
		return nil, fmt.Errorf("making a policy's map: %w", err)
	}
	if err := inner.Put(uint32(0), p.words(int(t.inner.ValueSize/8))); err != nil {
		return nil, errors.Join(fmt.Errorf("writing a policy: %w", err), inner.Close())
	}
	return inner, nil
}

// place makes sure that the policies stand in the outer map. The first new one takes
// the spare's place; all others together wait once for running programs (Linux 6.1;
// before, once each).
func (t *policyTable) place(policies ...*Policy) (err error) {
	var fresh []*placed
	var inners []*ebpf.Map
	defer func() {
		for _, inner := range inners {
			err = errors.Join(err, inner.Close())
		}
		for _, p := range fresh {
			if err != nil {
				err = errors.Join(err, t.forget(p))
			}
		}
	}()
	for _, p := range policies {
		if t.byKey[p.key] != nil {
			continue
		}
		used, err := t.useSpare(p)
		if err != nil {
			return err
		}
		if used {
			continue
		}
		entry, inner, err := t.pinNew(p)
		if err != nil {
			return err
		}
		fresh, inners = append(fresh, entry), append(inners, inner)
	}
	return t.put(fresh, inners)
}

// pinNew gives a policy an index and a map, which has yet to be put there.
func (t *policyTable) pinNew(p *Policy) (*placed, *ebpf.Map, error) {
	index, err := t.freeIndex()
	if err != nil {
		return nil, nil, err
	}
	inner, err := t.newInner(p)
	if err != nil {
		return nil, nil, err
	}
	entry := &placed{policyPin: policyPin{t.version, index, p.key}, unused: time.Now()}
	if err := inner.Pin(filepath.Join(t.dir, entry.String())); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pinning a policy: %w", err), inner.Close())
	}
	t.enter(entry)
	return entry, inner, nil
}

// put lets maps stand at the indexes of entries, a map for each.
func (t *policyTable) put(entries []*placed, inners []*ebpf.Map) error {
	if len(entries) == 0 {
		return nil
	}
	indexes, fds := make([]uint32, len(entries)), make([]uint32, len(entries))
	for i, entry := range entries {
		indexes[i], fds[i] = entry.index, uint32(inners[i].FD())
	}
	if len(entries) > 1 {
		// Not every kernel that knows batches knows them for outer maps.
		if n, err := t.outer.BatchUpdate(indexes, fds, nil); err == nil && n == len(indexes) {
			return nil
		}
	}
	for i := range entries {
		if err := t.outer.Put(indexes[i], inners[i]); err != nil {
			return fmt.Errorf("placing a policy: %w", err)
		}
	}
	return nil
}

// freeIndex never returns 0, which stands for no policy.
func (t *policyTable) freeIndex() (uint32, error) {
	for range 2 {
		for range t.outer.MaxEntries() - 1 {
			if t.next++; t.next >= t.outer.MaxEntries() {
				t.next = 1
			}
			if t.byIndex[t.next] == nil {
				return t.next, nil
			}
		}
		if err := t.collect(time.Now()); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("all %d policies of the table are in use", len(t.byIndex))
}

// index returns that of a policy that was placed.
func (t *policyTable) index(p *Policy) uint32 { return t.byKey[p.key].index }

// refer counts an attachment that changes from one index to another, 0 for none.
func (t *policyTable) refer(from, to uint32) {
	if p := t.byIndex[to]; p != nil {
		p.references++
	}
	if p := t.byIndex[from]; p != nil {
		if p.references--; p.references == 0 {
			p.unused = time.Now()
		}
	}
}

// unused returns how many policies no attachment has.
func (t *policyTable) unused() (n int) {
	for _, p := range t.byIndex {
		if p.references == 0 {
			n++
		}
	}
	return n
}

// collect removes the policies that no attachment has had since a time.
func (t *policyTable) collect(since time.Time) error {
	var old []*placed
	var none []*ebpf.Map
	for _, p := range t.byIndex {
		if p.references == 0 && !p.unused.After(since) {
			old, none = append(old, p), append(none, t.none)
		}
	}
	if len(old) == 0 {
		return nil
	}
	// A program may have read an index just before its attachment changed.
	if err := t.waitForPrograms(); err != nil {
		return err
	}
	if err := t.put(old, none); err != nil {
		return err
	}
	var errs []error
	for _, p := range old {
		errs = append(errs, t.forget(p))
	}
	return errors.Join(errs...)
}

// waitForPrograms returns once every run of a program that had begun has ended:
// the kernel waits so after each update of an outer map.
func (t *policyTable) waitForPrograms() error {
	if err := t.barrier.Put(uint32(0), t.none); err != nil {
		return fmt.Errorf("waiting for running programs: %w", err)
	}
	return nil
}

func (t *policyTable) enter(p *placed) {
	t.byKey[p.key], t.byIndex[p.index] = p, p
}

// forget gives a policy's index free.
func (t *policyTable) forget(p *placed) error {
	delete(t.byKey, p.key)
	delete(t.byIndex, p.index)
	return removePin(filepath.Join(t.dir, p.String()))
}

func removePin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a policy's pin: %w", err)
	}
	return nil
}

func (t *policyTable) close() error {
	maps := []*ebpf.Map{t.none, t.barrier, t.outer}
	if t.spare != nil {
		maps = append(maps, t.spare.inner)
	}
	return closeMaps(maps...)
}

func closeMaps(maps ...*ebpf.Map) error {
	var errs []error
	for _, m := range maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
