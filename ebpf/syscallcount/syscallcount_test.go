// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/internal/bpffs"
)

// Known calls on every CPU are counted, each once, however they are read.
func TestExact(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	container := makeCgroup(t, pods, "pod", "container")
	outside := makeCgroup(t, pods, "other")
	watchPod(t, c, 3, filepath.Join(pods, "pod"), Settings{})
	inside, stranger := newWorker(t, container), newWorker(t, outside)
	for cpu := range runtime.NumCPU() {
		inside.do("calls %d 10000 %d", knownCall, cpu)
		inside.do("calls %d 7 %d", otherCall, cpu)
		stranger.do("calls %d 500 %d", knownCall, cpu)
	}
	for _, single := range []bool{false, true} {
		c.buffer.single = single
		wantCalls(t, c, 3, knownCall, 10000*int64(runtime.NumCPU()))
		wantCalls(t, c, 3, otherCall, 7*int64(runtime.NumCPU()))
		if n := len(counts(t, c)); n != 1 {
			t.Errorf("%d slots are read, want 1", n)
		}
	}
}

// A process that is born in a container made after Watch is counted from its birth:
// the call that starts its program is the first that Go makes only once.
func TestFirstCall(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	pod := makeCgroup(t, pods, "pod")
	watchPod(t, c, 0, pod, Settings{})
	for i := range rounds(20, 5) {
		w := newWorker(t, makeCgroup(t, pod, fmt.Sprint("container", i), "nested"))
		w.do("calls %d 1 0", knownCall)
		w.end()
		wantCalls(t, c, 0, unix.SYS_EXECVE, int64(i+1))
		wantCalls(t, c, 0, knownCall, int64(i+1))
		wantCalls(t, c, 0, unix.SYS_EXIT_GROUP, int64(i+1))
	}
}

// Where the kernel preempts the program it keeps calls from it, and Missed tells how
// many; else none are missing. A later agent tells, too.
func TestPreempted(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	c := counter(t, dir)
	watchPod(t, c, 6, pods, Settings{Numbers: []uint16{knownCall}})
	made := newWorker(t, pods).do("preempt %d", rounds(2000, 200))
	wantCalls(t, c, 6, knownCall, made)
	before := missedCalls(t, c)
	t.Logf("%d calls; %d of all processes' calls missed", made, before)
	closeCounter(t, c)
	if after := missedCalls(t, counter(t, dir)); after < before {
		t.Errorf("after a restart %d calls were missed, before %d", after, before)
	}
}

func TestFilter(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	w := newWorker(t, pods)
	watchPod(t, c, 1, pods, Settings{Numbers: []uint16{knownCall, 511}})
	w.do("calls %d 100 0", knownCall)
	w.do("calls %d 100 0", otherCall)
	row := counts(t, c)[1]
	for number, n := range row {
		wantCount(t, c, fmt.Sprint("number ", number), n, map[int]uint64{knownCall: 100}[number])
	}
	watchPod(t, c, 1, pods, Settings{})
	w.do("calls %d 11 0", knownCall)
	w.do("calls %d 11 0", otherCall)
	wantCalls(t, c, 1, knownCall, 111)
	wantCalls(t, c, 1, otherCall, 11)
	watchPod(t, c, 1, pods, Settings{Numbers: []uint16{}})
	w.do("calls %d 5 0", otherCall)
	w.do("calls %d 5 0", Numbers)
	w.do("calls %d 5 0", -1)
	wantCalls(t, c, 1, otherCall, 11)
}

func TestPerPID(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	first, second := newWorker(t, pods), newWorker(t, makeCgroup(t, pods, "container"))
	watchPod(t, c, 2, pods, Settings{PerPID: true, Numbers: []uint16{knownCall, otherCall}})
	for cpu := range runtime.NumCPU() {
		first.do("calls %d 1000 %d", knownCall, cpu)
		second.do("calls %d 20 %d", knownCall, cpu)
		second.do("calls %d 3 %d", otherCall, cpu)
	}
	type key struct {
		pid    int
		number uint16
	}
	read := func() map[key]uint64 {
		found := map[key]uint64{}
		err := c.ReadPIDs(func(slot, pid uint32, number uint16, count uint64) {
			if slot != 2 {
				t.Errorf("slot %d", slot)
			}
			found[key{int(pid), number}] += count
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	cpus := uint64(runtime.NumCPU())
	want := map[key]uint64{
		{first.cmd.Process.Pid, knownCall}:  1000 * cpus,
		{second.cmd.Process.Pid, knownCall}: 20 * cpus,
		{second.cmd.Process.Pid, otherCall}: 3 * cpus,
	}
	got := read()
	for k, n := range want {
		wantCount(t, c, fmt.Sprintf("process %d, number %d", k.pid, k.number), got[k], n)
	}
	if len(got) != len(want) {
		t.Errorf("counts per process: %v, want %v", got, want)
	}
	wantCalls(t, c, 2, knownCall, 1020*int64(cpus))
	watchPod(t, c, 2, pods, Settings{})
	if got := read(); len(got) != 0 {
		t.Errorf("no longer asked for: %v", got)
	}
	if err := c.Unwatch(2); err != nil {
		t.Fatal(err)
	}
	watchPod(t, c, 2, pods, Settings{PerPID: true, Numbers: []uint16{otherCall}})
	if got := read(); len(got) != 0 {
		t.Errorf("after Unwatch: %v", got)
	}
}

// Each of 1,000 pods has counts of its own.
func TestManyPods(t *testing.T) {
	const pods = 1000
	root := newPods(t)
	c := counterOf(t, opening(newBPFFS(t), current, 1024))
	w := newWorker(t, root)
	for slot := range uint32(pods) {
		pod := filepath.Join(root, fmt.Sprint("pod", slot))
		makeCgroup(t, pod, "container")
		watchPod(t, c, slot, pod, Settings{})
	}
	for slot := range pods {
		w.do("move %s", filepath.Join(root, fmt.Sprint("pod", slot), "container"))
		w.do("calls %d %d %d", knownCall, slot+1, slot%runtime.NumCPU())
	}
	got := counts(t, c)
	for slot := range uint32(pods) {
		wantCount(t, c, fmt.Sprint("slot ", slot), got[slot][knownCall], uint64(slot+1))
	}
	if len(got) != pods {
		t.Errorf("%d slots were read, want %d", len(got), pods)
	}
	var slots []uint32
	for slot := range uint32(pods) {
		slots = append(slots, slot)
	}
	if err := c.Unwatch(slots...); err != nil {
		t.Error(err)
	}
}

// Cgroups that come and go while the pod is looked at are neither missed nor kept.
func TestChurn(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	pod := makeCgroup(t, pods, "pod")
	w := newWorker(t, makeCgroup(t, pod, "home"))
	var stop atomic.Bool
	done := make(chan int64)
	go func() {
		calls := int64(0)
		for i := 0; !stop.Load(); i++ {
			nested := filepath.Join(pod, fmt.Sprint("c", i), "nested")
			makeCgroup(t, nested)
			w.do("move %s", nested)
			w.do("calls %d 10 %d", knownCall, i%runtime.NumCPU())
			calls += 10
			w.do("move %s", filepath.Join(pod, "home"))
			removeCgroup(t, filepath.Dir(nested))
		}
		done <- calls
	}()
	watchPod(t, c, 5, pod, Settings{Numbers: []uint16{otherCall}})
	watchPod(t, c, 5, pod, Settings{Numbers: []uint16{otherCall}})
	stop.Store(true)
	<-done
	stop.Store(false)
	watchPod(t, c, 5, pod, Settings{})
	go func() {
		calls := int64(0)
		for i := 0; !stop.Load(); i++ {
			nested := filepath.Join(pod, fmt.Sprint("d", i), "nested")
			makeCgroup(t, nested)
			w.do("move %s", nested)
			w.do("calls %d 10 %d", knownCall, i%runtime.NumCPU())
			calls += 10
			w.do("move %s", filepath.Join(pod, "home"))
			removeCgroup(t, filepath.Dir(nested))
		}
		done <- calls
	}()
	for range rounds(300, 50) {
		watchPod(t, c, 5, pod, Settings{})
	}
	stop.Store(true)
	wantCalls(t, c, 5, knownCall, <-done)
	registered, err := cgroupsOf(c.store.maps[syscallcountMapCgroupSlots])
	if err != nil || len(registered) != 2 {
		t.Errorf("%d cgroups are registered (%v), want the pod and its home", len(registered), err)
	}
}

// A cgroup that goes during Watch is a typed error, and leaves no entry.
func TestCgroupGone(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	neighbour := makeCgroup(t, pods, "neighbour")
	w := newWorker(t, neighbour)
	watchPod(t, c, 0, neighbour, Settings{})
	pod := filepath.Join(pods, "pod")
	var removed *GoneError
	if err := c.Watch(1, pod, Settings{}); !errors.As(err, &removed) || !errors.Is(err, fs.ErrNotExist) {
		t.Error("no cgroup:", err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			makeCgroup(t, pod, "a", "b")
			removeCgroup(t, pod)
		}
	}()
	watched, missing := 0, 0
	for range rounds(300, 50) {
		err := c.Watch(1, pod, Settings{})
		switch {
		case err == nil:
			watched++
		case errors.As(err, &removed):
			missing++
		default:
			t.Error(err)
		}
	}
	stop.Store(true)
	<-done
	t.Logf("%d times watched, %d times gone", watched, missing)
	registered, err := cgroupsOf(c.store.maps[syscallcountMapCgroupSlots])
	if err != nil || len(registered) != 1 {
		t.Errorf("%v are registered (%v), want the neighbour only", registered, err)
	}
	w.do("calls %d 9 0", knownCall)
	wantCalls(t, c, 0, knownCall, 9)
}

// A slot is empty after Unwatch, and stays so whatever its former pod does.
func TestUnwatch(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	former, next := makeCgroup(t, pods, "former"), makeCgroup(t, pods, "next")
	neighbour := makeCgroup(t, pods, "neighbour")
	busy, quiet := newWorker(t, former), newWorker(t, neighbour)
	watchPod(t, c, 8, neighbour, Settings{})
	quiet.do("calls %d 40 0", knownCall)
	busy.do("begin")
	for range rounds(10, 3) {
		watchPod(t, c, 7, former, Settings{PerPID: true})
		if err := c.Unwatch(7); err != nil {
			t.Fatal(err)
		}
		watchPod(t, c, 7, next, Settings{})
		wantCalls(t, c, 7, knownCall, 0)
		if err := c.Unwatch(7, 7, 9); err != nil {
			t.Fatal(err)
		}
		if _, ok := counts(t, c)[7]; ok {
			t.Error("an unwatched slot is read")
		}
	}
	busy.do("end")
	wantCalls(t, c, 8, knownCall, 40)
}

func TestFull(t *testing.T) {
	c, pods := counter(t, newBPFFS(t)), newPods(t)
	pod := makeCgroup(t, pods, "pod")
	first := newWorker(t, makeCgroup(t, pod, "first"))
	watchPod(t, c, 0, pod, Settings{})
	cgroups := c.store.maps[syscallcountMapCgroupSlots]
	taken := 0
	for cgroups.Put(uint64(1)<<60+uint64(taken), uint32(15)) == nil {
		taken++
	}
	if taken != 16384-2 {
		t.Errorf("%d cgroups fit besides 2, want %d", taken, 16384-2)
	}
	late := makeCgroup(t, pod, "late")
	second := newWorker(t, late)
	second.do("calls %d 5 0", knownCall)
	if n, err := c.Dropped(); n != 1 || err != nil {
		t.Errorf("%d dropped (%v), want 1", n, err)
	}
	var full *FullError
	if err := c.Watch(1, makeCgroup(t, pods, "more"), Settings{}); !errors.As(err, &full) || full.Cgroups != 16384 {
		t.Error("a pod more:", err)
	}
	if _, ok := c.Watched()[1]; ok {
		t.Error("a pod that could not be watched is")
	}
	first.do("calls %d 30 0", knownCall)
	wantCalls(t, c, 0, knownCall, 30)
	// Space again: whoever is watched again is complete.
	if err := cgroups.Delete(uint64(1) << 60); err != nil {
		t.Fatal(err)
	}
	watchPod(t, c, 0, pod, Settings{})
	second.do("calls %d 4 0", knownCall)
	wantCalls(t, c, 0, knownCall, 34)

	var slot *SlotError
	if err := c.Watch(16, pod, Settings{}); !errors.As(err, &slot) {
		t.Error("a slot too high:", err)
	}
	if err := c.Watch(2, pod, Settings{Numbers: []uint16{Numbers}}); err == nil {
		t.Error("a number too high: no error")
	}
}

func TestOpenErrors(t *testing.T) {
	dir := newBPFFS(t)
	if _, err := Open(Options{Dir: t.TempDir(), Slots: 1}); !errors.Is(err, bpffs.ErrNotBPFFS) {
		t.Error("a plain directory:", err)
	}
	if _, err := Open(Options{Dir: filepath.Join(dir, "none"), Slots: 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Error("no directory:", err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("no slots: no error")
	}
	counter(t, dir)
	if _, err := Open(Options{Dir: dir, Slots: 16}); !errors.Is(err, bpffs.ErrLocked) {
		t.Error("a second holder:", err)
	}
}

// Nothing is attached unless something is watched, and nothing is left by Remove.
func TestAttachment(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	c := counter(t, dir)
	if len(linksOf(t, c)) != 0 {
		t.Error("attached with nothing watched")
	}
	for range 3 {
		watchPod(t, c, 0, pods, Settings{})
		links := linksOf(t, c)
		if len(links) != 3 {
			t.Errorf("%d links, want 3", len(links))
		}
		if err := c.Unwatch(0); err != nil {
			t.Fatal(err)
		}
		wantGone(t, links)
	}
	watchPod(t, c, 0, pods, Settings{})
	links := linksOf(t, c)
	var programs []ebpf.ProgramID
	for _, p := range c.programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		programs = append(programs, id)
	}
	closeCounter(t, c)
	for _, id := range links {
		l, err := link.NewFromID(id)
		if err != nil {
			t.Fatal("after Close:", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	wantGone(t, links)
	for _, id := range programs {
		eventually(t, "a program goes", func() bool {
			p, err := ebpf.NewProgramFromID(id)
			if err == nil {
				_ = p.Close()
			}
			return errors.Is(err, fs.ErrNotExist)
		})
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("pins left: %v (%v)", left, err)
	}
}

func wantGone(t *testing.T, links []link.ID) {
	t.Helper()
	for _, id := range links {
		eventually(t, "a link goes", func() bool {
			l, err := link.NewFromID(id)
			if err == nil {
				_ = l.Close()
			}
			return errors.Is(err, fs.ErrNotExist)
		})
	}
}

func TestStoreNames(t *testing.T) {
	for text, want := range map[string]bool{
		"v1_1024_3": true, "v12_1_18446744073709551615": true,
		"v1_1024_3_new": false, "v1_1024": false, "v01_1_1": false, "hook1_jump": false, "": false, "v1_1_1 ": false,
	} {
		name, ok := parseStoreName(text)
		if ok != want || ok && name.String() != text {
			t.Errorf("%q: %v, %v", text, name, ok)
		}
	}
}

func TestSurvey(t *testing.T) {
	for name, tc := range map[string]struct {
		dirs                    []string
		chain, garbage, unknown string
	}{
		"nothing":                {},
		"in use":                 {[]string{"v1_16_1/settled", "hook1_jump", "hook1_sys_enter"}, "v1_16_1", "", ""},
		"begun":                  {[]string{"v0_16_1/settled", "v1_16_2_new"}, "v0_16_1", "v1_16_2_new", ""},
		"not yet carried over":   {[]string{"v1_16_9/settled", "v0_16_10", "v1_32_11"}, "v1_16_9 v0_16_10 v1_32_11", "", ""},
		"carried over":           {[]string{"v0_16_1/settled", "v1_16_2", "v1_32_3/settled"}, "v1_32_3", "v0_16_1 v1_16_2", ""},
		"half carried over":      {[]string{"v0_16_1/settled", "v1_16_2/settled", "v1_32_3"}, "v1_16_2 v1_32_3", "v0_16_1", ""},
		"a newer one":            {[]string{"v1_16_1/settled", "v2_16_2/settled", "hook2_jump"}, "v1_16_1", "", "hook2_jump v2_16_2"},
		"of a hook that was new": {[]string{"hook1_sys_enter_new", "hook1_jump"}, "", "hook1_sys_enter_new", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range tc.dirs {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			p, err := survey(dir, func(version uint32) bool { return version < 2 })
			if err != nil {
				t.Fatal(err)
			}
			got := []string{strings.Join(storeNames(p.chain), " "), strings.Join(p.garbage, " "), strings.Join(p.unknown, " ")}
			if want := []string{tc.chain, tc.garbage, tc.unknown}; !slices.Equal(got, want) {
				t.Errorf("chain, garbage, unknown: %q, want %q", got, want)
			}
		})
	}
}

func TestSettingsAreWhole(t *testing.T) {
	settings, err := Settings{Numbers: []uint16{0, 63, 64, 511}, PerPID: true}.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := syscallcountSettings{Flags: flagWatched | flagPerPID | flagHasPIDs}
	want.Numbers[0], want.Numbers[1], want.Numbers[7] = 1|1<<63, 1, 1<<63
	if settings != want {
		t.Errorf("%+v, want %+v", settings, want)
	}
	if _, err := (Settings{Numbers: []uint16{512}}).encode(); err == nil || !strings.Contains(err.Error(), "512") {
		t.Error("number 512:", err)
	}
}
