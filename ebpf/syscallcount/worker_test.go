// SPDX-License-Identifier: Apache-2.0

package syscallcount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The test binary runs itself in these roles, as processes of pods and as agents.
const roleVariable = "SYSCALLCOUNT_TEST_ROLE"

// shortVariable tells them that the test is to be short.
const shortVariable = "SYSCALLCOUNT_TEST_SHORT"

var roles = map[string]func([]string) error{
	"worker":   work,
	"crash":    crash,
	"probe":    func([]string) error { return Probe() },
	"agent":    beAgent,
	"hide BTF": hideBTF,
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Neither the Go runtime nor its libraries make these calls (getppid they do, in a
// child that is to end with its parent).
const (
	knownCall = unix.SYS_GETSID
	otherCall = unix.SYS_GETPGID
)

func command(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	if testing.Short() {
		cmd.Env = append(cmd.Env, shortVariable+"=1")
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// work obeys the lines of its standard input:
//
//	calls NUMBER COUNT CPU   makes system calls on one CPU
//	move CGROUP              moves into a cgroup
//	begin                    makes known calls on all CPUs
//	end                      stops that, and says how many they were
//	preempt COUNT            makes known calls in two threads of one CPU, one of which
//	                         preempts the other so many times, and says how many they were
//	time COUNT               says how many nanoseconds of CPU so many calls of getppid took
func work([]string) error {
	lines := bufio.NewScanner(os.Stdin)
	var load *loadRun
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		var numbers []int
		for _, w := range words[1:] {
			n, _ := strconv.Atoi(w)
			numbers = append(numbers, n)
		}
		answer := int64(0)
		var err error
		switch words[0] {
		case "calls":
			err = pin(numbers[2])
			for range numbers[1] {
				_, _, _ = unix.RawSyscall(uintptr(numbers[0]), 0, 0, 0)
			}
		case "move":
			err = os.WriteFile(filepath.Join(words[1], "cgroup.procs"), []byte("0"), 0)
		case "begin":
			load = startLoad()
		case "end":
			answer = load.end()
		case "preempt":
			answer, err = preempt(numbers[0])
		case "time":
			answer, err = timeCalls(numbers[0])
		}
		if err != nil {
			return err
		}
		fmt.Println(answer)
	}
	return lines.Err()
}

// rounds is how often a test does something: fewer times where it is to be short,
// on emulated machines.
func rounds(all, short int) int {
	if testing.Short() {
		return short
	}
	return all
}

func pin(cpu int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// timeCalls returns what so many calls take: the least of some bursts, each on one CPU
// and in front of all other load, which can only add to it.
func timeCalls(n int) (least int64, err error) {
	const bursts = 10
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := errors.Join(pin(0), schedule(unix.SCHED_FIFO, 1)); err != nil {
		return 0, err
	}
	for range bursts {
		began := threadTime()
		for range n {
			_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		}
		if took := threadTime() - began; least == 0 || took < least {
			least = took
		}
	}
	return least, schedule(unix.SCHED_NORMAL, 0)
}

func schedule(policy, priority uint32) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}, 0)
}

// threadTime is the CPU time of this thread: others at work on the machine disturb it
// less than the time of day.
func threadTime() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		panic(err)
	}
	return now.Nano()
}

// preempt makes known calls in two threads of one CPU: one makes them all the time, the
// other some at a time, as soon as it wakes up, wherever the first one is.
func preempt(times int) (calls int64, err error) {
	const each = 20
	var stop atomic.Bool
	steady := make(chan int64)
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		ready <- pin(0)
		n := int64(0)
		for ; !stop.Load(); n++ {
			_, _, _ = unix.RawSyscall(knownCall, 0, 0, 0)
		}
		steady <- n
	}()
	if err := <-ready; err != nil {
		return 0, err
	}
	urgent := make(chan error)
	go func() { // The thread ends with the goroutine.
		runtime.LockOSThread()
		err := errors.Join(pin(0), schedule(unix.SCHED_FIFO, 1))
		for range times {
			pause := unix.NsecToTimespec(int64(300 * time.Microsecond))
			// A signal of Go's runtime may end it early.
			if slept := unix.Nanosleep(&pause, nil); !errors.Is(slept, unix.EINTR) {
				err = errors.Join(err, slept)
			}
			for range each {
				_, _, _ = unix.RawSyscall(knownCall, 0, 0, 0)
			}
		}
		urgent <- err
	}()
	err = <-urgent
	stop.Store(true)
	return <-steady + int64(times*each), err
}

type loadRun struct {
	stop  atomic.Bool
	total atomic.Int64
	wg    sync.WaitGroup
}

func startLoad() *loadRun {
	l := &loadRun{}
	pause := 20 * time.Microsecond
	if os.Getenv(shortVariable) != "" {
		pause = 20 * time.Millisecond
	}
	for cpu := range runtime.NumCPU() {
		l.wg.Go(func() {
			if err := pin(cpu); err != nil {
				panic(err)
			}
			for !l.stop.Load() {
				for range 100 {
					_, _, _ = unix.RawSyscall(knownCall, 0, 0, 0)
				}
				l.total.Add(100)
				// Leave some of the machine to the agent.
				time.Sleep(pause)
			}
		})
	}
	return l
}

func (l *loadRun) end() int64 {
	l.stop.Store(true)
	l.wg.Wait()
	return l.total.Load()
}

// worker is a process that was born in a cgroup.
type worker struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newWorker(t testing.TB, cgroup string) *worker {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command("worker")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	if err := errors.Join(cmd.Start(), dir.Close()); err != nil {
		t.Fatal("starting a worker:", err)
	}
	w := &worker{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(w.end)
	return w
}

// do sends a line and returns the answer.
func (w *worker) do(format string, args ...any) int64 {
	w.t.Helper()
	if _, err := fmt.Fprintf(w.in, format+"\n", args...); err != nil {
		w.t.Fatal("telling a worker:", err)
	}
	line, err := w.out.ReadString('\n')
	if err != nil {
		w.t.Fatal("hearing from a worker:", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// end lets the process exit, and waits for it.
func (w *worker) end() {
	if w.cmd.ProcessState != nil {
		return
	}
	if err := errors.Join(w.in.Close(), w.cmd.Wait()); err != nil {
		w.t.Error("ending a worker:", err)
	}
}

// newBPFFS returns a directory in a BPF file system of the test's own.
func newBPFFS(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a BPF file system needs root")
	}
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal("mounting a BPF file system:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error("unmounting:", err)
		}
	})
	dir := filepath.Join(mount, "agent")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

var unique atomic.Int64

// newPods returns a cgroup of the test's own; all below it is removed at the end.
func newPods(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(cgroupRoot(t), fmt.Sprintf("syscallcount-%d-%d", os.Getpid(), unique.Add(1)))
	t.Cleanup(func() { removeCgroup(t, dir) })
	return makeCgroup(t, dir)
}

func makeCgroup(t testing.TB, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func cgroupRoot(t testing.TB) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			return fields[4]
		}
	}
	t.Skip("no cgroup v2 file system is mounted")
	return ""
}

func removeCgroup(t testing.TB, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			removeCgroup(t, filepath.Join(dir, entry.Name()))
		}
	}
	// A process that has just been waited for may still be leaving.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		err = os.Remove(dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Error("removing a cgroup:", err)
	}
}

// counter opens a Counter that is closed at the end of the test.
func counter(t testing.TB, dir string) *Counter {
	t.Helper()
	return counterOf(t, opening(dir, current, 16))
}

func counterOf(t testing.TB, o opener) *Counter {
	t.Helper()
	c, err := o.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.store != nil {
			closeCounter(t, c)
		}
	})
	return c
}

func closeCounter(t testing.TB, c *Counter) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal("closing:", err)
	}
	c.store = nil
}

func watchPod(t testing.TB, c *Counter, slot uint32, cgroup string, s Settings) {
	t.Helper()
	if err := c.Watch(slot, cgroup, s); err != nil {
		t.Fatal(err)
	}
}

// counts reads all watched slots.
func counts(t testing.TB, c *Counter) map[uint32][Numbers]uint64 {
	t.Helper()
	found := map[uint32][Numbers]uint64{}
	err := c.Read(func(slot uint32, counts *[Numbers]uint64) {
		if _, twice := found[slot]; twice {
			t.Errorf("slot %d was visited twice", slot)
		}
		found[slot] = *counts
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func wantCalls(t testing.TB, c *Counter, slot uint32, number int, want int64) {
	t.Helper()
	row, ok := counts(t, c)[slot]
	if !ok {
		t.Fatalf("slot %d is not watched", slot)
	}
	wantCount(t, c, fmt.Sprintf("slot %d, number %d", slot, number), row[number], uint64(want))
}

// wantCount compares a count with what was called: they are equal, but for calls that
// the kernel admits to have kept from the program.
func wantCount(t testing.TB, c *Counter, what string, got, want uint64) {
	t.Helper()
	// The words are those that test/kernels looks for.
	if missed := missedCalls(t, c); got < want && int64(want-got) <= missed {
		t.Logf("%s: skipped by the kernel: %d of %d calls; of all processes' calls %d", what, want-got, want, missed)
		return
	}
	if got != want {
		t.Errorf("%s: %d calls, want %d (%+d)", what, got, want, int64(got)-int64(want))
	}
}

func missedCalls(t testing.TB, c *Counter) int64 {
	t.Helper()
	missed, err := c.Missed()
	if err != nil {
		t.Fatal(err)
	}
	return int64(missed)
}

// linksOf returns the IDs of what a Counter has attached.
func linksOf(t testing.TB, c *Counter) []link.ID {
	t.Helper()
	links := c.cgroups
	if c.hook != nil {
		links = append([]link.Link{c.hook.enter}, links...)
	}
	var ids []link.ID
	for _, l := range links {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, info.ID)
	}
	return ids
}

// eventually waits for what the kernel does on its own time.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 30 seconds:", what)
		}
	}
}
