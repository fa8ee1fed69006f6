// SPDX-License-Identifier: Apache-2.0

package podslots

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
)

// mount returns a directory in a BPF file system of the test's own.
func mount(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a BPF file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal("mounting a BPF file system:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error("unmounting:", err)
		}
	})
	// The kernel puts files of its own into the root.
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	return own
}

func open(t *testing.T, dir string, slots uint32) *Slots {
	t.Helper()
	s, err := Open(dir, slots)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func uid(n int) types.UID { return types.UID(fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", n)) }

// step is one call and what it returns.
type step struct {
	do   string // take, release, reopen
	pod  int
	want uint32
	full bool
}

func TestSlots(t *testing.T) {
	for name, steps := range map[string][]step{
		"the lowest free, the same again": {
			{do: "take", pod: 1, want: 0}, {do: "take", pod: 2, want: 1}, {do: "take", pod: 1, want: 0},
		},
		"a released slot is given again": {
			{do: "take", pod: 1, want: 0}, {do: "take", pod: 2, want: 1}, {do: "take", pod: 3, want: 2},
			{do: "release", pod: 2}, {do: "take", pod: 4, want: 1}, {do: "release", pod: 2},
		},
		"full, and no longer full": {
			{do: "take", pod: 1, want: 0}, {do: "take", pod: 2, want: 1}, {do: "take", pod: 3, want: 2},
			{do: "take", pod: 4, full: true}, {do: "take", pod: 2, want: 1},
			{do: "release", pod: 3}, {do: "take", pod: 4, want: 2},
		},
		"kept through restarts": {
			{do: "take", pod: 1, want: 0}, {do: "take", pod: 2, want: 1}, {do: "release", pod: 1}, {do: "reopen"},
			{do: "take", pod: 2, want: 1}, {do: "take", pod: 3, want: 0}, {do: "reopen"}, {do: "take", pod: 3, want: 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := mount(t)
			s := open(t, dir, 3)
			for i, step := range steps {
				switch step.do {
				case "reopen":
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					s = open(t, dir, 3)
				case "release":
					if err := s.Release(uid(step.pod)); err != nil {
						t.Errorf("step %d: %v", i, err)
					}
				case "take":
					got, err := s.Take(uid(step.pod))
					var full *FullError
					if errors.As(err, &full) != step.full || err != nil && !step.full || got != step.want {
						t.Errorf("step %d: slot %d (%v), want %d, full %v", i, got, err, step.want, step.full)
					}
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestResize(t *testing.T) {
	dir := mount(t)
	if _, err := Pinned(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing is pinned: %v", err)
	}
	s := open(t, dir, 2)
	for pod := range 2 {
		if _, err := s.Take(uid(pod)); err != nil {
			t.Fatal(err)
		}
	}
	want := s.All()
	for _, tc := range []struct{ ask, len uint32 }{{4, 4}, {2, 2}, {1, 2}, {8, 8}} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, tc.ask)
		if s.Len() != tc.len || !maps.Equal(s.All(), want) {
			t.Errorf("opened with %d: %d slots, pods %v; want %d, %v", tc.ask, s.Len(), s.All(), tc.len, want)
		}
		if slots, err := Pinned(dir); err != nil || slots != tc.len {
			t.Errorf("opened with %d: %d slots are pinned (%v), want %d", tc.ask, slots, err, tc.len)
		}
	}
	for pod := 2; pod < 8; pod++ {
		if slot, err := s.Take(uid(pod)); err != nil || slot != uint32(pod) {
			t.Errorf("pod %d: slot %d (%v)", pod, slot, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Each of many goroutines gets a slot of its own.
func TestConcurrent(t *testing.T) {
	s := open(t, mount(t), 200)
	var wg sync.WaitGroup
	for pod := range 200 {
		wg.Go(func() {
			if _, err := s.Take(uid(pod)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	owner := map[uint32]types.UID{}
	for uid, slot := range s.All() {
		if owner[slot] != "" {
			t.Errorf("slot %d has two pods, %s and %s", slot, owner[slot], uid)
		}
		owner[slot] = uid
	}
	if len(owner) != 200 {
		t.Errorf("%d slots taken, want 200", len(owner))
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestUIDs(t *testing.T) {
	s := open(t, mount(t), 4)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, tc := range map[string]struct {
		uid types.UID
		ok  bool
	}{
		"a static pod's": {"0123456789abcdef0123456789abcdef", true},
		"64 bytes":       {types.UID(strings.Repeat("x", 64)), true},
		"too long":       {types.UID(strings.Repeat("x", 65)), false},
		"empty":          {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Take(tc.uid)
			if (err == nil) != tc.ok {
				t.Error("Take:", err)
			}
			if _, ok := s.All()[tc.uid]; ok != tc.ok {
				t.Errorf("registered: %v", ok)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	dir := mount(t)
	if _, err := Open(t.TempDir(), 4); !errors.Is(err, bpffs.ErrNotBPFFS) {
		t.Error("a plain directory:", err)
	}
	if _, err := Open(filepath.Join(dir, "none"), 4); !errors.Is(err, fs.ErrNotExist) {
		t.Error("no directory:", err)
	}
	if _, err := Open(dir, 0); err == nil {
		t.Error("no slots: no error")
	}
	s := open(t, dir, 4)
	if _, err := Open(dir, 4); !errors.Is(err, bpffs.ErrLocked) {
		t.Error("a second holder:", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left after Remove: %v (%v)", left, err)
	}
}
