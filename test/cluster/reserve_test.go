// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// needsRoot fails rather than skips: this package has a target of its own.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this makes cgroups and namespaces: run it as root")
	}
}

func reserved(t *testing.T) *place {
	t.Helper()
	p, err := reserve()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlacesDoNotCollide(t *testing.T) {
	needsRoot(t)
	one, two := reserved(t), reserved(t)
	if one.cgroup == two.cgroup || one.dir == two.dir {
		t.Errorf("two clusters got %q and %q", one.dir, two.dir)
	}
	for _, p := range []*place{one, two} {
		if err := p.release(); err != nil {
			t.Error(err)
		}
		absent(t, p.cgroup, p.dir)
	}
}

func absent(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

// What a cluster leaves whose janitor was killed, too, the next one removes.
func TestStalePlaceIsCleared(t *testing.T) {
	needsRoot(t)
	p := reserved(t)
	inner := filepath.Join(p.cgroup, "node-1", "kubepods", "pod1")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(p.dir, "machines", "left")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("/bin/sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	// As reserve does with a place that it finds unlocked.
	if err := sweep(p.cgroup, false, folders(p.number)...); err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process of the earlier cluster: %v", err)
	}
	absent(t, inner, left)
	if err := p.release(); err != nil {
		t.Error(err)
	}
	absent(t, p.cgroup, p.dir)
}

// beKilled names the file in which this test binary, started again, tells of a place
// that it has until it is killed; with wholeCluster, of one with a cluster.
const (
	beKilled     = "PODCONFIGMAP_CLUSTER_TEST_HOLD"
	wholeCluster = "PODCONFIGMAP_CLUSTER_TEST_WHOLE"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(beKilled); file != "" {
		hold(file, os.Getenv(wholeCluster) != "")
	}
	os.Exit(harness.Orderly("test-cluster", func(ctx context.Context) int {
		return harness.WithLogs("test-cluster", func(folder string) int {
			logs = folder
			// Tests that go on are given up: their clusters end with this process.
			return harness.RunTests(ctx, m, grace)
		})
	}))
}

// logs is the folder of what explains a failure, which the tests' clusters log to.
var logs string

// logsOf is that of a test.
func logsOf(t *testing.T) string { return filepath.Join(logs, filepath.FromSlash(t.Name())) }

func hold(file string, whole bool) {
	var p *place
	var err error
	if whole {
		var c *Cluster
		if c, err = Start(context.Background(), Options{Nodes: 1, Logs: filepath.Dir(file)}); err == nil {
			p = c.place
		}
	} else {
		p, err = reserve()
	}
	if err == nil {
		err = os.WriteFile(file, []byte(p.cgroup+"\n"+p.dir), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	time.Sleep(time.Hour)
}

func TestJanitorClearsAfterAKill(t *testing.T) {
	needsRoot(t)
	said := filepath.Join(t.TempDir(), "place")
	holder := exec.Command("/proc/self/exe")
	holder.Env = append(os.Environ(), beKilled+"="+said)
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	var paths []string
	awaitTrue(t, "it has a place", func() bool {
		text, err := os.ReadFile(said)
		paths = strings.Split(string(text), "\n")
		return err == nil && len(paths) == 2
	})
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	awaitTrue(t, "the janitor has cleared", func() bool {
		_, first := os.Lstat(paths[0])
		_, second := os.Lstat(paths[1])
		return first != nil && second != nil
	})
}

func TestJanitorWantsItsArguments(t *testing.T) {
	if err := beJanitor(strings.NewReader(""), []string{"one"}); err == nil {
		t.Error("no error")
	}
}

func awaitTrue(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !yes(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting until %s: not within %s", what, patience)
		}
	}
}
