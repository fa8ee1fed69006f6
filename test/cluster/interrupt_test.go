// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

// What people start leaves nothing when it is interrupted or fails. It has a network, a
// cgroup, pods and more on this machine, which all are noted while it runs.
func TestInterrupted(t *testing.T) {
	needsRoot(t)
	commands := buildCommand(t)
	tests := func(name string, more ...string) []string { // as hack/make/e2e.mk has them
		return append([]string{"hack/orderly.sh", "go", "test", "-v", "-count=1", "-timeout=30m", "-run=^" + name + "$"}, more...)
	}
	e2e := func(name string) []string { return tests(name, "./test/e2e", "-nodes=1") }
	for _, tc := range []struct {
		name    string
		command []string
		at      string // what it prints when it is to be ended
		end     func(*victim)
		code    int
		printed string
		pins    bool
	}{
		{"make cluster by Ctrl-C, twice", []string{commands, "-nodes=1", "-kwok=2"}, "Ctrl-C stops the cluster", (*victim).pressTwice, 0, "cluster: interrupted (interrupt): cleaning up", false},
		{"make cluster by SIGTERM, as it starts", []string{commands, "-nodes=1"}, "control plane ready", (*victim).terminate, 1, "context canceled", false},
		{"e2e by Ctrl-C, with maps in the kernel", e2e("TestEBPF"), "e2e: ebpf.enabled=true by helm upgrade: an agent on every node (", (*victim).pressTwice, 1, "--- FAIL: TestEBPF", true},
		{"e2e by the end of go", e2e("TestEBPF"), "1 nodes ready", (*victim).killGo, 137, "", false},
		{"e2e that fails", e2e("TestConfigMaps"), "1 nodes ready", (*victim).loseControlPlane, 1, "--- FAIL: TestConfigMaps", false},
		{"scale by SIGTERM", tests("TestScale", "./test/scale", "-scale.pods=20", "-scale.nodes=2", "-scale.namespaces=2"),
			"ConfigMaps of all pods", (*victim).terminate, 1, "--- FAIL: TestScale", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := startVictim(t, tc.command)
			v.awaitPrinted(tc.at)
			v.notePins()
			if strings.HasPrefix(tc.at, "Ctrl-C") {
				v.awaitPrinted("export KUBECONFIG=")
			}
			if noted := v.traces.Noted(); tc.pins && noted.Maps == 0 {
				t.Errorf("nothing is pinned: %+v", noted)
			}
			tc.end(v)
			v.ends(tc.code, tc.printed)
		})
	}
}

// buildCommand builds what `make cluster` runs.
func buildCommand(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cluster")
	if said, err := exec.Command("go", "build", "-o", program, "./cmd").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return program
}

// victim is a command with a session, a file for its output and a folder for temporary
// files of its own.
type victim struct {
	*exec.Cmd
	t           *testing.T
	said        string
	tmp         string
	traces      Traces
	known       map[int]uint64 // its processes: when they began
	stop, ended chan struct{}  // of the notes
}

func startVictim(t *testing.T, command []string) *victim {
	t.Helper()
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{t: t, Cmd: exec.Command(command[0], command[1:]...), said: filepath.Join(t.TempDir(), "said"), tmp: t.TempDir(),
		known: map[int]uint64{}}
	out, err := os.Create(v.said)
	if err != nil {
		t.Fatal(err)
	}
	v.Dir, v.Stdout, v.Stderr = root, out, out
	v.Env = append(os.Environ(), "TMPDIR="+v.tmp)
	v.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(v.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if v.ProcessState == nil {
			_ = syscall.Kill(-v.Process.Pid, syscall.SIGKILL)
			_ = v.Wait()
		}
	})
	first, err := readProcess(v.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	v.known[first.pid] = first.began
	v.goOn()
	return v
}

// watch notes all processes that descend from the command, with their namespaces and
// cgroups, until stop.
func (v *victim) watch() {
	defer close(v.ended)
	for {
		v.note()
		select {
		case <-v.stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (v *victim) note() {
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		v.t.Error(err)
	}
	all := map[int]process{}
	for _, path := range found {
		pid, _ := strconv.Atoi(filepath.Base(path))
		if p, err := readProcess(pid); err == nil {
			all[pid] = p
		}
	}
	for grew := true; grew; {
		grew = false
		for pid, p := range all {
			if v.isKnown(p) || !v.isKnown(all[p.parent]) {
				continue
			}
			v.known[pid], grew = p.began, true
			v.noteProcess(pid)
		}
	}
}

func (v *victim) isKnown(p process) bool {
	began, known := v.known[p.pid]
	return known && began == p.began
}

var cgroupOfCluster = regexp.MustCompile(`0::/` + placePrefix + `(\d+)`)

// noteProcess notes what a process has, if that is still there.
func (v *victim) noteProcess(pid int) {
	_ = v.traces.Process(pid)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return
	}
	mount, err := cgroupMount()
	if err != nil {
		v.t.Error(err)
	}
	for _, found := range cgroupOfCluster.FindAllStringSubmatch(string(text), -1) {
		number, err := strconv.Atoi(found[1])
		if err != nil {
			v.t.Error(err)
		}
		for _, path := range append(folders(number), filepath.Join(mount, placePrefix+found[1])) {
			if err := v.traces.Path(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				v.t.Error(err)
			}
		}
	}
}

// notePins notes what is pinned on the nodes.
func (v *victim) notePins() {
	v.t.Helper()
	v.pause()
	for pid := range v.known {
		if strings.HasPrefix(commandOf(pid), "cluster-node-") {
			if err := v.traces.Pinned(pathSeenBy(pid, "/sys/fs/bpf/podconfigmap")); err != nil {
				v.t.Error(err)
			}
		}
	}
	v.goOn()
}

// pause ends the notes, for a while.
func (v *victim) pause() {
	close(v.stop)
	<-v.ended
}

func (v *victim) goOn() {
	v.stop, v.ended = make(chan struct{}), make(chan struct{})
	go v.watch()
}

func commandOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return string(text)
}

func (v *victim) output() string {
	text, err := os.ReadFile(v.said)
	if err != nil {
		v.t.Error(err)
	}
	return string(text)
}

// awaitPrinted waits until it has printed something; what it builds first takes long.
func (v *victim) awaitPrinted(text string) {
	v.t.Helper()
	for end := time.Now().Add(10 * time.Minute); !strings.Contains(v.output(), text); time.Sleep(50 * time.Millisecond) {
		if p, err := readProcess(v.Process.Pid); err != nil || p.state == "Z" || time.Now().After(end) {
			v.t.Fatalf("it never printed %q:\n%s", text, v.output())
		}
	}
}

func (v *victim) signal(pid int, s syscall.Signal) {
	v.t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		v.t.Fatalf("sending %v to %d: %v", s, pid, err)
	}
}

// pressTwice does what Ctrl-C does, and impatience.
func (v *victim) pressTwice() {
	v.signal(-v.Process.Pid, syscall.SIGINT)
	v.awaitPrinted("interrupted (interrupt): cleaning up")
	v.signal(-v.Process.Pid, syscall.SIGINT)
}

// terminate does what make does that is told to end.
func (v *victim) terminate() { v.signal(-v.Process.Pid, syscall.SIGTERM) }

// killGo kills `go test`, whose test nobody reads then.
func (v *victim) killGo() { v.kill("go\x00") }

// loseControlPlane ends the machine of the control plane, so that all that follows fails.
func (v *victim) loseControlPlane() { v.kill("cluster-" + controlPlaneName) }

// kill kills the process whose command line begins so.
func (v *victim) kill(prefix string) {
	v.t.Helper()
	v.pause()
	defer v.goOn()
	for pid := range v.known {
		if strings.HasPrefix(commandOf(pid), prefix) {
			v.signal(pid, syscall.SIGKILL)
			return
		}
	}
	v.t.Errorf("it has no process %q", prefix)
}

var keptLogs = regexp.MustCompile(`the logs are in ([^\s,]+)`)

// ends waits for the end of all that was noted, and looks for what is left.
func (v *victim) ends(code int, printed string) {
	v.t.Helper()
	_ = v.Wait() // its error is the code
	if got := v.ProcessState.ExitCode(); got != code || !strings.Contains(v.output(), printed) {
		v.t.Errorf("it ended with code %d instead of %d, and should have printed %q:\n%s", got, code, printed, v.output())
	}
	var left error
	end := time.Now().Add(3 * patience)
	for left = v.traces.Left(); left != nil && time.Now().Before(end); left = v.traces.Left() {
		time.Sleep(100 * time.Millisecond)
	}
	v.pause()
	if left != nil {
		v.t.Errorf("it left: %v\n%s", left, v.output())
	}
	v.noFiles(end)
	noted := v.traces.Noted()
	v.t.Logf("looked for %+v and %d cgroups and folders", noted, len(v.traces.paths))
	if noted.Processes < 2 {
		v.t.Errorf("noted %+v only", noted)
	}
	v.logs(code)
}

// noFiles waits until the folder of temporary files is empty.
func (v *victim) noFiles(end time.Time) {
	v.t.Helper()
	for {
		files, err := os.ReadDir(v.tmp)
		if err == nil && len(files) == 0 {
			return
		}
		if err != nil || time.Now().After(end) {
			v.t.Errorf("it left temporary files: %v, %v", files, err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// logs looks for those of a failure, in the folder that was printed, and removes them.
func (v *victim) logs(code int) {
	v.t.Helper()
	found := keptLogs.FindStringSubmatch(v.output())
	if found == nil {
		v.t.Fatalf("it tells of no logs:\n%s", v.output())
	}
	kept := 0
	err := filepath.WalkDir(found[1], func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			kept++
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if (kept > 0) != (code != 0) {
		v.t.Errorf("it ended with code %d, and there are %d logs in %s", code, kept, found[1])
	}
	if err := errors.Join(err, os.RemoveAll(found[1])); err != nil {
		v.t.Error(err)
	}
}
