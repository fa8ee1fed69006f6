// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
)

const (
	pinDir      = "syscallcount"
	jumpPin     = "hook1_jump"
	stubPin     = "hook1_stub"
	enterPin    = "hook1_sys_enter"
	mkdirPin    = "cgroup_mkdir"
	rmdirPin    = "cgroup_rmdir"
	settledName = "settled"
	newSuffix   = "_new"
)

// step is called between any two changes of what is pinned. Tests end the process
// there.
var step = func() {}

// storeName is the name of a folder of maps.
type storeName struct {
	version, slots uint32
	generation     uint64
}

func (n storeName) String() string {
	return fmt.Sprintf("v%d_%d_%d", n.version, n.slots, n.generation)
}

func parseStoreName(text string) (storeName, bool) {
	var n storeName
	_, err := fmt.Sscanf(text, "v%d_%d_%d", &n.version, &n.slots, &n.generation)
	return n, err == nil && n.String() == text
}

// pinned is what a directory of pins holds.
type pinned struct {
	// chain are the folders in use, oldest first: the first has its own counts
	// and its carried values, of the others only their own counts hold, as those
	// before them were not yet carried over.
	chain []storeName
	// garbage is what a crash left, without counts that matter.
	garbage []string
	// unknown is what no known layout has made.
	unknown []string
}

// survey sorts what is in dir. known says which layouts can be read.
func survey(dir string, known func(version uint32) bool) (pinned, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pinned{}, err
	}
	var p pinned
	for _, entry := range entries {
		name := entry.Name()
		store, ok := parseStoreName(name)
		switch {
		case name == jumpPin || name == stubPin || name == enterPin:
		case strings.HasSuffix(name, newSuffix):
			p.garbage = append(p.garbage, name)
		case ok && entry.IsDir() && known(store.version):
			p.chain = append(p.chain, store)
		default:
			p.unknown = append(p.unknown, name)
		}
	}
	p.cutChain(dir)
	return p, nil
}

// cutChain sorts the chain, and makes garbage of what is before the last folder that
// is settled.
func (p *pinned) cutChain(dir string) {
	slices.SortFunc(p.chain, func(a, b storeName) int { return cmp.Compare(a.generation, b.generation) })
	for i := len(p.chain) - 1; i > 0; i-- {
		if _, err := os.Stat(filepath.Join(dir, p.chain[i].String(), settledName)); err != nil {
			continue
		}
		p.garbage = append(p.garbage, storeNames(p.chain[:i])...)
		p.chain = p.chain[i:]
		return
	}
}

// nextGeneration is higher than that of anything in dir that looks like a store,
// known or not.
func nextGeneration(dir string) (uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	next := uint64(1)
	for _, entry := range entries {
		if store, ok := parseStoreName(entry.Name()); ok {
			next = max(next, store.generation+1)
		}
	}
	return next, nil
}

// Remove detaches the programs and deletes every pin of any version in dir. What is
// not there is no error; while a Counter holds the pins it is bpffs.ErrLocked.
func Remove(dir string) error {
	path := filepath.Join(dir, pinDir)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := bpffs.Lock(path)
	if err != nil {
		return fmt.Errorf("removing the system call counter: %w", err)
	}
	// First what runs for every system call of the node.
	err = errors.Join(removePin(filepath.Join(path, enterPin)), removeTree(path), lock.Close())
	if err != nil {
		return fmt.Errorf("removing the system call counter: %w", err)
	}
	return nil
}

// removePin deletes a pin that may be gone.
func removePin(path string) error {
	step()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeTree deletes a pin, or a folder of pins, that may be gone.
func removeTree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := removeTree(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	return removePin(path)
}
