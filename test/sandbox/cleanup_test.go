// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// endVariable tells a test's own process how to end.
const endVariable = "SANDBOX_TEST_END"

// leftovers are what a node is made of, as a line of text.
type leftovers struct {
	cgroup, bpffs string
	pids          []int
}

// doomed is a test that makes all there is, and ends.
func doomed(t *testing.T, end string) {
	n := New(t)
	pod := n.Pod(PodOptions{})
	peer, born := pod.Peer(), pod.Container("born").Connect("tcp", "127.0.0.1:1", time.Second)
	outside := n.Peer()
	fmt.Println("made", n.Root(), n.BPFFS(), peer.PID(), born.PID(), outside.PID())
	switch end {
	case "fatal":
		t.Fatal("as asked")
	case "panic":
		panic("as asked")
	case "panic elsewhere":
		go panic("as asked")
		select {}
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

// Nothing is left, however a test ends: it runs itself in a process that does.
func TestCleanup(t *testing.T) {
	if end := os.Getenv(endVariable); end != "" {
		doomed(t, end)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, end := range []string{"well", "fatal", "panic", "panic elsewhere", "kill"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			left := doom(t, end)
			deadline := time.Now().Add(time.Minute)
			for what := left.still(); what != ""; what = left.still() {
				if time.Now().After(deadline) {
					t.Fatalf("there is still %s", what)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// doom runs doomed in a process and returns what it made.
func doom(t *testing.T, end string) leftovers {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestCleanup$", "-test.v")
	cmd.Env = append(os.Environ(), endVariable+"="+end)
	out, err := cmd.CombinedOutput()
	if (err == nil) != (end == "well") {
		t.Errorf("the process ended with %v\n%s", err, out)
	}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 || fields[0] != "made" {
			continue
		}
		left := leftovers{cgroup: fields[1], bpffs: fields[2]}
		for _, f := range fields[3:] {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			left.pids = append(left.pids, pid)
		}
		return left
	}
	t.Fatalf("it made nothing:\n%s", out)
	return leftovers{}
}

// still names something that is still there.
func (l leftovers) still() string {
	for _, path := range []string{l.cgroup, l.bpffs} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return path
		}
	}
	for _, pid := range l.pids {
		// A zombie is one that its new parent has not looked at yet.
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && !strings.Contains(string(status), ") Z ") {
			return "process " + strconv.Itoa(pid)
		}
	}
	return ""
}
