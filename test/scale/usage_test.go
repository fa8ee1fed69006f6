// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ticks are the units of CPU time in /proc, by second (USER_HZ, on all that Linux runs
// on).
const ticks = 100

// process is what the kernel says of one.
type process struct {
	name     string
	parent   int
	cpu      time.Duration // of all its threads so far
	resident int           // bytes
}

// parse reads the line of /proc/PID/stat (proc_pid_stat(5)).
func parse(line string) (process, error) {
	// The name is in brackets, and may hold some.
	open, shut := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || shut < open {
		return process{}, fmt.Errorf("no name in %q", line)
	}
	fields := strings.Fields(line[shut+1:]) // from the third on
	if len(fields) < 22 {
		return process{}, fmt.Errorf("%d fields in %q", len(fields), line)
	}
	var numbers [4]int
	var errs []error
	for i, field := range []int{4, 14, 15, 24} { // ppid, utime, stime, rss
		n, err := strconv.Atoi(fields[field-3])
		numbers[i] = n
		errs = append(errs, err)
	}
	return process{
		name: line[open+1 : shut], parent: numbers[0],
		cpu:      time.Duration(numbers[1]+numbers[2]) * time.Second / ticks,
		resident: numbers[3] * os.Getpagesize(),
	}, errors.Join(errs...)
}

// look reads what the kernel says of a process.
func look(id int) (process, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	if err != nil {
		return process{}, err
	}
	p, err := parse(string(bytes.TrimSpace(line)))
	if err != nil {
		return process{}, fmt.Errorf("reading what the kernel says of process %d: %w", id, err)
	}
	return p, nil
}

// processes are this one and those that it has started, by id.
func processes() (map[int]process, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	own := os.Getpid()
	all := map[int]process{}
	for _, path := range paths {
		id, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		p, err := look(id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		if id == own || p.parent == own {
			all[id] = p
		}
	}
	return all, nil
}

// spent tells the CPU time of each process between two looks, most first, with that
// for each of n pods.
func spent(before, after map[int]process, n int) string {
	taken := map[int]time.Duration{}
	for id, p := range after {
		taken[id] = p.cpu - before[id].cpu
	}
	ids := slices.SortedFunc(maps.Keys(taken), func(a, b int) int { return int(taken[b] - taken[a]) })
	var text strings.Builder
	total := time.Duration(0)
	for _, id := range ids {
		total += taken[id]
		fmt.Fprintf(&text, "\n  %-16s %6.1f s of CPU, %5.2f ms for each pod; %d MiB resident",
			after[id].name, taken[id].Seconds(), perPod(taken[id], n), after[id].resident>>20)
	}
	return fmt.Sprintf("%.1f s of CPU, %.2f ms for each pod:%s", total.Seconds(), perPod(total, n), text.String())
}

func perPod(d time.Duration, n int) float64 { return d.Seconds() * 1000 / float64(max(n, 1)) }

// usage is that of this process and those that it has started since a moment.
type usage struct {
	since map[int]process
	began time.Time
	id    int // of the one whose memory is looked at
	end   chan struct{}
	peak  chan int // bytes
}

// watchUsage begins to look at all processes, and each second at one's memory.
func watchUsage(id int) (*usage, error) {
	since, err := processes()
	if err != nil {
		return nil, err
	}
	u := &usage{since: since, began: time.Now(), id: id, end: make(chan struct{}), peak: make(chan int, 1)}
	go u.sample(since[id].resident)
	return u, nil
}

func (u *usage) sample(peak int) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		// One that has ended uses nothing.
		if now, err := look(u.id); err == nil {
			peak = max(peak, now.resident)
		}
		select {
		case <-u.end:
			u.peak <- peak
			return
		case <-tick.C:
		}
	}
}

// tell logs what has been spent so far, for n pods.
func (u *usage) tell(logf func(string, ...any), what string, n int) error {
	now, err := processes()
	if err != nil {
		return err
	}
	logf("%s took %s and %s", what, time.Since(u.began).Round(time.Second), spent(u.since, now, n))
	return nil
}

// stop logs the memory of the one that was looked at.
func (u *usage) stop(logf func(string, ...any)) error {
	close(u.end)
	peak := <-u.peak
	now, err := processes()
	if err != nil {
		return err
	}
	logf("%s: %d MiB resident at most, %d MiB at the end", now[u.id].name, peak>>20, now[u.id].resident>>20)
	return nil
}

func TestParse(t *testing.T) {
	got, err := parse("42 (a) (b) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 100 9000 3 18446744073709551615 1 1")
	want := process{name: "a) (b", parent: 7, cpu: 2 * time.Second, resident: 3 * os.Getpagesize()}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, line := range []string{"", "42 a S 7", "42 (a) S 7 1", "42 (a) S x 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 100 9000 3 1"} {
		if _, err := parse(line); err == nil {
			t.Errorf("%q: no error", line)
		}
	}
}

func TestProcesses(t *testing.T) {
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	own, there := all[os.Getpid()]
	if !there || own.resident <= 0 || own.parent != os.Getppid() {
		t.Errorf("this process is %+v (%t)", own, there)
	}
	if _, there := all[1]; there && os.Getpid() != 1 {
		t.Error("process 1 is none of this one's")
	}
}

func TestSpent(t *testing.T) {
	before := map[int]process{1: {name: "a", cpu: time.Second}, 2: {name: "b", cpu: time.Second}}
	after := map[int]process{1: {name: "a", cpu: 2 * time.Second}, 2: {name: "b", cpu: 4 * time.Second, resident: 5 << 20}}
	got := spent(before, after, 1000)
	const want = "4.0 s of CPU, 4.00 ms for each pod:\n" +
		"  b                   3.0 s of CPU,  3.00 ms for each pod; 5 MiB resident\n" +
		"  a                   1.0 s of CPU,  1.00 ms for each pod; 0 MiB resident"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
