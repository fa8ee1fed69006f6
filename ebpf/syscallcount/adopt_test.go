// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/ebpf/syscallcount/nextlayout"
)

// oldLayout has other rows, under another name, and a smaller table of cgroups.
var oldLayout = layout{version: 0, numbers: 256, rows: "call_rows", load: func() (*ebpf.CollectionSpec, error) {
	return ebpf.LoadCollectionSpec("testdata/oldlayout_bpfel.o")
}}

// laterLayout has larger structs. No build but its own knows it.
var laterLayout = layout{version: nextlayout.Version, numbers: Numbers, rows: syscallcountMapSyscallRows, load: nextlayout.Load}

// testLayouts are ascending; one that is before current stands for itself only.
var testLayouts = []layout{oldLayout, first, laterLayout}

// opening is an agent of a build that knows the layout and those before it.
func opening(dir string, l layout, slots uint32) opener {
	n := slices.IndexFunc(testLayouts, func(one layout) bool { return one.version == l.version })
	return opener{Options: Options{Dir: dir, Slots: slots}, current: l, known: testLayouts[:n+1]}
}

// No call is lost or counted twice by restarts.
func TestRestart(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	c := counter(t, dir)
	watchPod(t, c, 4, pods, Settings{PerPID: true})
	w := newWorker(t, makeCgroup(t, pods, "container"))
	w.do("begin")
	for range rounds(20, 4) {
		closeCounter(t, c)
		c = counter(t, dir)
		if complete, ok := c.Watched()[4]; !ok || !complete {
			t.Fatalf("watched after a restart: %v", c.Watched())
		}
	}
	calls := w.do("end")
	wantCalls(t, c, 4, knownCall, calls)
	// A container made while no agent runs.
	closeCounter(t, c)
	late := newWorker(t, makeCgroup(t, pods, "late"))
	late.do("calls %d 77 0", knownCall)
	c = counter(t, dir)
	wantCalls(t, c, 4, knownCall, calls+77)
	perPID := int64(0)
	err := c.ReadPIDs(func(_, _ uint32, number uint16, n uint64) {
		if number == knownCall {
			perPID += int64(n)
		}
	})
	if all := int64(counts(t, c)[4][knownCall]); err != nil || perPID != all {
		t.Errorf("%d calls by process (%v), want %d", perPID, err, all)
	}
	t.Logf("%d calls", calls)
}

// Nor by upgrades, returns to an earlier version, and other numbers of slots.
func TestLayoutChange(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	c := counter(t, dir)
	filtered, all := makeCgroup(t, pods, "filtered"), makeCgroup(t, pods, "all")
	watchPod(t, c, 1, filtered, Settings{Numbers: []uint16{knownCall}})
	watchPod(t, c, 2, all, Settings{})
	one, two := newWorker(t, makeCgroup(t, filtered, "container")), newWorker(t, makeCgroup(t, all, "container"))
	one.do("begin")
	two.do("begin")
	made := int64(0)
	builds := []opener{opening(dir, laterLayout, 16), opening(dir, first, 16), opening(dir, oldLayout, 16), opening(dir, laterLayout, 32), opening(dir, first, 64)}
	for i := range rounds(15, 5) {
		closeCounter(t, c)
		o := builds[i%len(builds)]
		stop, churned := make(chan struct{}), make(chan int64)
		go func() { churned <- churn(t, all, i, stop) }()
		c = counterOf(t, o)
		close(stop)
		made += <-churned
		if len(c.Discarded()) != 0 {
			t.Error("discarded:", c.Discarded())
		}
	}
	wantCalls(t, c, 1, knownCall, one.do("end"))
	wantCalls(t, c, 2, knownCall, two.do("end"))
	wantCalls(t, c, 2, otherCall, made)
	one.do("calls %d 5 0", otherCall)
	wantCalls(t, c, 1, otherCall, 0)
	two.do("calls %d 5 0", 500)
	wantCalls(t, c, 2, 500, 5)
	entries, err := os.ReadDir(filepath.Join(dir, pinDir))
	if err != nil || len(entries) != 4 {
		t.Errorf("pins: %v (%v), want the hook's three and one store", entries, err)
	}
}

// churn makes containers until told to stop, each with a process that makes 3 calls of
// the other kind, and returns how many those are.
func churn(t *testing.T, pod string, round int, stop <-chan struct{}) int64 {
	calls := int64(0)
	for i := 0; ; i++ {
		select {
		case <-stop:
			return calls
		default:
		}
		w := newWorker(t, makeCgroup(t, pod, fmt.Sprintf("r%d-%d", round, i), "nested"))
		w.do("calls %d 3 %d", otherCall, i%runtime.NumCPU())
		w.end()
		calls += 3
	}
}

// crash is an agent that kills itself at the given step:
// DIR LAYOUT SLOTS STEP CGROUP, where a cgroup is watched in slot 6 and unwatched.
func crash(args []string) error {
	version, _ := strconv.Atoi(args[1])
	slots, _ := strconv.Atoi(args[2])
	left, _ := strconv.Atoi(args[3])
	step = func() {
		if left--; left == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	c, err := opening(args[0], testLayouts[version], uint32(slots)).open()
	if err != nil {
		return err
	}
	if err := c.Watch(6, args[4], Settings{PerPID: true}); err != nil {
		return err
	}
	if err := c.Unwatch(6); err != nil {
		return err
	}
	return c.Close()
}

// An agent that is killed between any two changes of what is pinned loses nothing.
func TestKill(t *testing.T) {
	for name, tc := range map[string]struct{ before, after opener }{
		"the same layout":          {opening("", first, 16), opening("", first, 16)},
		"an upgrade":               {opening("", oldLayout, 16), opening("", first, 16)},
		"a return":                 {opening("", first, 16), opening("", oldLayout, 32)},
		"an upgrade to a later":    {opening("", first, 16), opening("", laterLayout, 16)},
		"a return from an unknown": {opening("", laterLayout, 16), opening("", first, 32)},
	} {
		t.Run(name, func(t *testing.T) {
			dir, pods := newBPFFS(t), newPods(t)
			tc.before.Dir, tc.after.Dir = dir, dir
			pod, second := makeCgroup(t, pods, "pod"), makeCgroup(t, pods, "second")
			c := counterOf(t, tc.before)
			watchPod(t, c, 4, pod, Settings{})
			w := newWorker(t, makeCgroup(t, pod, "container"))
			w.do("begin")
			steps := 0
			for killed := true; killed; steps++ {
				closeCounter(t, c)
				killed = runCrash(t, tc.after, steps+1, second)
				// Half of the crashes are repaired by the same version, half
				// by the one before.
				if steps%2 == 0 {
					c = counterOf(t, tc.after)
					closeCounter(t, c)
				}
				c = counterOf(t, tc.before)
				checkRepaired(t, c, steps)
			}
			closeCounter(t, c)
			c = counter(t, dir)
			wantCalls(t, c, 4, knownCall, w.do("end"))
			t.Logf("killed at %d steps", steps-1)
		})
	}
}

func checkRepaired(t *testing.T, c *Counter, steps int) {
	t.Helper()
	watched := c.Watched()
	if !watched[4] || len(c.Discarded()) != 0 {
		t.Fatalf("after %d steps: watched %v, discarded %v", steps, watched, c.Discarded())
	}
	if len(c.unclean) != 0 {
		t.Errorf("after %d steps: unclean slots %v", steps, c.unclean)
	}
	if err := c.Unwatch(6); err != nil {
		t.Fatal(err)
	}
	var left [Numbers]uint64
	if err := c.store.addOwn(6, &left); err != nil || left != [Numbers]uint64{} {
		t.Errorf("after %d steps: counts in an unwatched slot (%v)", steps, err)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("after %d steps: pins %v (%v)", steps, entries, err)
	}
}

// runCrash tells whether the agent was killed at the step, or came to its end before.
func runCrash(t *testing.T, o opener, step int, cgroup string) bool {
	t.Helper()
	version := slices.IndexFunc(testLayouts, func(l layout) bool { return l.version == o.current.version })
	cmd := command("crash", o.Dir, fmt.Sprint(version), fmt.Sprint(o.Slots), fmt.Sprint(step), cgroup)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("step %d: %v", step, err)
	}
	return false
}

// kill -9 from outside, at any time.
func TestKillUnderLoad(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	c := counter(t, dir)
	watchPod(t, c, 0, pods, Settings{})
	closeCounter(t, c)
	w := newWorker(t, makeCgroup(t, pods, "container"))
	w.do("begin")
	for range rounds(10, 3) {
		cmd := command("agent", dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal("the agent did not start:", err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	c = counter(t, dir)
	wantCalls(t, c, 0, knownCall, w.do("end"))
}

// beAgent holds the pins in DIR until it is killed.
func beAgent(args []string) error {
	for i := 0; ; i++ {
		c, err := opening(args[0], first, 16).open()
		if err != nil {
			return err
		}
		if i == 0 {
			fmt.Print("x")
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
}

// What a newer version left is taken away, and named.
func TestUnknownLayout(t *testing.T) {
	dir, pods := newBPFFS(t), newPods(t)
	newer := layout{version: 9, numbers: 256, rows: "call_rows", load: oldLayout.load}
	c := counterOf(t, opener{Options: Options{dir, 16}, current: newer, known: []layout{newer}})
	watchPod(t, c, 3, pods, Settings{})
	links := linksOf(t, c)[1:] // the hook is taken over or not
	closeCounter(t, c)
	path := filepath.Join(dir, pinDir)
	strange, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err == nil {
		err = errors.Join(strange.Pin(filepath.Join(path, "hook2_table")), strange.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	c = counter(t, dir)
	found := c.Discarded()
	slices.Sort(found)
	if want := []string{"hook2_table", "v9_16_1"}; !slices.Equal(found, want) {
		t.Errorf("discarded %v, want %v", found, want)
	}
	if len(c.Watched()) != 0 || len(linksOf(t, c)) != 0 {
		t.Errorf("watched %v, links %v", c.Watched(), linksOf(t, c))
	}
	wantGone(t, links)
	w := newWorker(t, pods)
	watchPod(t, c, 3, pods, Settings{})
	w.do("calls %d 6 0", knownCall)
	wantCalls(t, c, 3, knownCall, 6)
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) != 4 {
		t.Errorf("pins: %v (%v)", entries, err)
	}
}

// Pins that somebody damaged are not trusted.
func TestDamagedPins(t *testing.T) {
	for name, damage := range map[string]string{
		"a map is gone":   "v1_16_1/" + syscallcountMapSyscallRows,
		"the hook's link": enterPin,
		"the hook's jump": jumpPin,
		"the hook's stub": stubPin,
		"a cgroup link":   "v1_16_1/" + mkdirPin,
	} {
		t.Run(name, func(t *testing.T) {
			dir, pods := newBPFFS(t), newPods(t)
			c := counter(t, dir)
			watchPod(t, c, 3, pods, Settings{})
			closeCounter(t, c)
			if err := os.Remove(filepath.Join(dir, pinDir, damage)); err != nil {
				t.Fatal(err)
			}
			c = counter(t, dir)
			watchPod(t, c, 3, pods, Settings{})
			w := newWorker(t, makeCgroup(t, pods, "container"))
			w.do("calls %d 8 0", knownCall)
			wantCalls(t, c, 3, knownCall, 8)
		})
	}
}
