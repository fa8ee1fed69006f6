// SPDX-License-Identifier: Apache-2.0

package podcgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/test/sandbox"
)

const long = time.Minute

var classes = []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort}

// watched is a tree that runs, with what it has told.
type watched struct {
	*Tree
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	heard  []Event
	listen func(Event)
}

// watch runs a tree until the end of the test. Each event is checked against what
// was told before: a path appears, then goes, then may appear again.
func watch(t testing.TB, root string, listen func(Event)) *watched {
	t.Helper()
	tree, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{Tree: tree, cancel: cancel, done: make(chan error, 1), listen: listen}
	there := map[string]bool{}
	go func() {
		w.done <- tree.Run(ctx, func(e Event) {
			if there[e.Path] != e.Removed {
				t.Errorf("%+v was told twice, or out of order", e)
			}
			there[e.Path] = !e.Removed
			w.mu.Lock()
			w.heard = append(w.heard, e)
			w.mu.Unlock()
			if w.listen != nil {
				w.listen(e)
			}
		})
	}()
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// stop ends the tree and returns what Run did.
func (w *watched) stop() error {
	w.cancel()
	err := <-w.done
	w.done <- err
	return err
}

// settle waits until the tree knows exactly these pods.
func (w *watched) settle(t testing.TB, want map[types.UID]string) {
	t.Helper()
	for deadline := time.Now().Add(long); !maps.Equal(w.All(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the tree knows %d pods, want %d: %v", len(w.All()), len(want), w.All())
		}
	}
}

func (w *watched) events() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.heard)
}

func mkdir(t testing.TB, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func rmdir(t testing.TB, path ...string) {
	t.Helper()
	if err := os.Remove(filepath.Join(path...)); err != nil {
		t.Fatal(err)
	}
}

// Pods of both drivers and all classes, made before and after the start.
func TestTreeFindsPods(t *testing.T) {
	n := sandbox.New(t)
	want := map[types.UID]string{}
	make := func(uid types.UID, driver sandbox.Driver, qos corev1.PodQOSClass) *sandbox.Pod {
		p := n.Pod(sandbox.PodOptions{UID: uid, QoS: qos, Driver: driver, NoNetwork: true})
		want[p.UID()] = p.Cgroup()
		p.Container("one")
		return p
	}
	all := func() (pods []*sandbox.Pod) {
		for _, driver := range []sandbox.Driver{sandbox.Cgroupfs, sandbox.Systemd} {
			for _, qos := range classes {
				pods = append(pods, make("", driver, qos))
			}
		}
		return pods
	}
	all()
	make(staticUID, sandbox.Systemd, corev1.PodQOSBurstable)
	w := watch(t, n.Root(), nil)
	w.settle(t, want)
	later := all()
	w.settle(t, want)
	for uid, path := range want {
		if got, ok := w.Path(uid); !ok || got != path {
			t.Errorf("Path(%s) = %q, %v, want %q", uid, got, ok, path)
		}
	}
	for _, p := range later {
		p.Remove()
		delete(want, p.UID())
	}
	w.settle(t, want)
	if got, ok := w.Path(later[0].UID()); ok || got != "" {
		t.Errorf("Path of a removed pod = %q, %v", got, ok)
	}
	if err := w.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if got := len(w.events()); got != 13+6 {
		t.Errorf("%d events, want %d: %v", got, 13+6, w.events())
	}
}

// kubepods may appear late, at the root or in kubelet's own root, and go again.
func TestTreeFindsRoots(t *testing.T) {
	for _, kubepods := range []string{
		"kubepods", "kubepods.slice", "kubelet/kubepods", "kubelet.slice/kubelet-kubepods.slice", "docker/0123abc/kubelet/kubepods",
	} {
		t.Run(filepath.Base(filepath.Dir(kubepods))+" "+filepath.Base(kubepods), func(t *testing.T) {
			root := sandbox.Cgroup(t)
			w := watch(t, root, nil)
			for range 3 {
				dir := mkdir(t, root, kubepods)
				pod := mkdir(t, dir, "burstable", "pod"+uid)
				static := mkdir(t, dir, "pod"+staticUID)
				w.settle(t, map[types.UID]string{uid: pod, staticUID: static})
				rmdir(t, pod)
				rmdir(t, static)
				for rmdir(t, dir, "burstable"); dir != root; dir = filepath.Dir(dir) {
					rmdir(t, dir)
				}
				w.settle(t, map[types.UID]string{})
			}
		})
	}
}

// What only looks like a pod is none: outside kubepods, inside a pod, too deep, a
// file, a symbolic link.
func TestTreePassesOver(t *testing.T) {
	root := t.TempDir() // cgroups cannot hold files and links
	mkdir(t, root, "pod"+uid)
	mkdir(t, root, "system.slice", "a.service", "kubepods", "pod"+uid)
	mkdir(t, root, "a", "b", "c", "d", "kubepods", "pod"+uid)
	mkdir(t, root, "kubepods", "other", "pod"+uid)
	pod := mkdir(t, root, "kubepods", "pod"+staticUID)
	w := watch(t, root, nil)
	want := map[types.UID]string{staticUID: pod}
	w.settle(t, want)
	mkdir(t, pod, "kubepods", "pod"+uid)
	if err := os.WriteFile(filepath.Join(root, "kubepods", "pod"+uid), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(pod, filepath.Join(root, "kubepods", "pod"+uuid.NewString())); err != nil {
		t.Fatal(err)
	}
	// In order: when the last one is known, the others have been looked at.
	last := mkdir(t, root, "kubepods", "pod"+uuid.Nil.String())
	want[types.UID(uuid.Nil.String())] = last
	w.settle(t, want)
}

// A UID that has two directories is where it appeared last.
func TestTreeTwoPaths(t *testing.T) {
	root := sandbox.Cgroup(t)
	old := mkdir(t, root, "kubepods", "pod"+uid)
	w := watch(t, root, nil)
	w.settle(t, map[types.UID]string{uid: old})
	young := mkdir(t, root, "kubepods.slice", "kubepods-pod"+lowered+".slice")
	w.settle(t, map[types.UID]string{uid: young})
	rmdir(t, young)
	w.settle(t, map[types.UID]string{uid: old})
	rmdir(t, old)
	w.settle(t, map[types.UID]string{})
}

// A cgroup that is made again at once is another one: it is told as gone, then as
// new, also when the tree looks only after both.
func TestTreeTellsReplacement(t *testing.T) {
	root := sandbox.Cgroup(t)
	pod := mkdir(t, root, "kubepods", "pod"+uid)
	release := make(chan struct{})
	var once sync.Once
	w := watch(t, root, func(Event) { once.Do(func() { <-release }) })
	w.settle(t, map[types.UID]string{uid: pod})
	rmdir(t, pod)
	mkdir(t, pod)
	close(release)
	for deadline := time.Now().Add(long); len(w.events()) < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("events %v", w.events())
		}
	}
	if got := w.events(); !got[1].Removed || got[2].Removed {
		t.Errorf("events %v, want: appeared, gone, appeared", got)
	}
	w.settle(t, map[types.UID]string{uid: pod})
}

// More happens than the kernel's queue holds, while the tree is held up: it knows
// the truth afterwards.
func TestTreeOverflow(t *testing.T) {
	limit := 16384
	if data, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events"); err == nil {
		if _, err := fmt.Sscan(string(data), &limit); err != nil {
			t.Fatal(err)
		}
	}
	root := sandbox.Cgroup(t)
	kubepods := mkdir(t, root, "kubepods")
	gone, replaced := mkdir(t, kubepods, "pod"+uid), mkdir(t, kubepods, "pod"+staticUID)
	release := make(chan struct{})
	var heard atomic.Int32
	w := watch(t, root, func(Event) {
		if heard.Add(1) == 2 {
			<-release
		}
	})
	w.settle(t, map[types.UID]string{uid: gone, staticUID: replaced})
	for range limit/2 + 1 {
		filler := mkdir(t, kubepods, "pod"+uuid.Nil.String())
		rmdir(t, filler)
	}
	// All of this is lost.
	want := map[types.UID]string{staticUID: replaced}
	for range 20 {
		id := uuid.NewString()
		want[types.UID(id)] = mkdir(t, kubepods, "pod"+id)
	}
	late := uuid.NewString()
	want[types.UID(late)] = mkdir(t, root, "kubelet", "kubepods", "besteffort", "pod"+late)
	rmdir(t, gone)
	rmdir(t, replaced)
	mkdir(t, replaced)
	close(release)
	w.settle(t, want)
	if err := w.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if !slices.Contains(w.events(), Event{UID: staticUID, Path: replaced, Removed: true}) {
		t.Error("a cgroup that was replaced was not told as gone")
	}
}

// Directories come and go under the tree's hands, in every level, and all that is
// left in the end is known.
func TestTreeChurn(t *testing.T) {
	root := sandbox.Cgroup(t)
	w := watch(t, root, nil)
	var wg sync.WaitGroup
	left := make([]map[types.UID]string, 6)
	for i := range left {
		kubepods := []string{"kubepods", "kubelet/kubepods", "a/b/kubepods.slice"}[i%3]
		left[i] = map[types.UID]string{}
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for range 300 {
				id := uuid.NewString()
				dir := filepath.Join(root, kubepods, []string{"", "burstable", "besteffort"}[random.IntN(3)], "pod"+id)
				// Another goroutine may be removing a directory above.
				for os.MkdirAll(dir, 0o755) != nil {
				}
				if random.IntN(30) == 0 {
					left[i][types.UID(id)] = dir
					continue
				}
				for dir != root && os.Remove(dir) == nil {
					dir = filepath.Dir(dir)
				}
			}
		})
	}
	wg.Wait()
	want := map[types.UID]string{}
	for _, l := range left {
		maps.Copy(want, l)
	}
	if len(want) == 0 {
		t.Fatal("nothing is left to be known")
	}
	w.settle(t, want)
}

func TestTreeThousands(t *testing.T) {
	root := sandbox.Cgroup(t)
	want := map[types.UID]string{}
	add := func(n int) {
		for i := range n {
			id := uuid.NewString()
			want[types.UID(id)] = mkdir(t, root, "kubepods", []string{"", "burstable", "besteffort"}[i%3], "pod"+id)
		}
	}
	add(2000)
	start := time.Now()
	w := watch(t, root, nil)
	<-w.Scanned()
	t.Logf("2,000 pods known %s after the start", time.Since(start).Round(time.Millisecond))
	if got := w.All(); !maps.Equal(got, want) {
		t.Errorf("%d pods are known after the first scan, want %d", len(got), len(want))
	}
	add(2000)
	w.settle(t, want)
	if err := w.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if len(w.dirs) > 10 {
		t.Errorf("%d directories are watched for %d pods", len(w.dirs), len(want))
	}
}

func TestTreeErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening what is not there: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil {
		t.Error("opening a file: no error")
	}
	gone := mkdir(t, dir, "gone")
	tree, err := Open(gone)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	seen := make(chan Event, 1)
	mkdir(t, gone, "kubepods", "pod"+uid)
	go func() { done <- tree.Run(context.Background(), func(e Event) { seen <- e }) }()
	<-seen
	go func() {
		for range seen {
		}
	}()
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run, its root removed: %v", err)
	}
	close(seen)
	unused, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unused.Close(); err != nil {
		t.Error(err)
	}
}

func TestID(t *testing.T) {
	root := sandbox.Cgroup(t)
	seen := map[uint64]string{}
	for _, dir := range []string{root, mkdir(t, root, "a"), mkdir(t, root, "b")} {
		id, err := ID(dir)
		if err != nil || id == 0 || seen[id] != "" {
			t.Errorf("ID(%s) = %d, %v", dir, id, err)
		}
		seen[id] = dir
	}
	before, _ := ID(filepath.Join(root, "a"))
	rmdir(t, root, "a")
	if _, err := ID(filepath.Join(root, "a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ID of what is gone: %v", err)
	}
	if after, err := ID(mkdir(t, root, "a")); err != nil || after == before {
		t.Errorf("a new cgroup has the id %d of the old one (%v)", after, err)
	}
	if _, err := ID(t.TempDir()); err == nil {
		t.Error("a directory that is no cgroup has an id")
	}
}

// From mkdir to the event.
func BenchmarkAppear(b *testing.B) {
	root := sandbox.Cgroup(b)
	kubepods := mkdir(b, root, "kubepods")
	times := appear(b, root, kubepods, max(b.N, 1))
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "µs-p99")
}

func TestAppear(t *testing.T) {
	root := sandbox.Cgroup(t)
	kubepods := mkdir(t, root, "kubepods")
	times := appear(t, root, kubepods, 200)
	t.Logf("from before mkdir to the event, %d pods: median %s, p99 %s", len(times), times[len(times)/2], times[len(times)*99/100])
}

// appear makes n pods, one after the other, and returns the sorted times from
// before mkdir until the event has come.
func appear(t testing.TB, root, kubepods string, n int) []time.Duration {
	heard := make(chan time.Time, 1)
	w := watch(t, root, func(e Event) {
		if !e.Removed {
			heard <- time.Now()
		}
	})
	mkdir(t, kubepods, "pod"+uid)
	<-heard
	times := make([]time.Duration, n)
	for i := range times {
		dir := filepath.Join(kubepods, "pod"+uuid.NewString())
		start := time.Now()
		mkdir(t, dir)
		times[i] = (<-heard).Sub(start)
		rmdir(t, dir)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	slices.Sort(times)
	return times
}
