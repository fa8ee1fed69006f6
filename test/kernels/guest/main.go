// SPDX-License-Identifier: Apache-2.0

// Command guest is the first and only program of the machines that test/kernels
// boots: it mounts what the kernel has to offer, loads modules, runs the test
// binaries that stand beside it, tries the programs with fewer and fewer
// capabilities, and writes messages to the second serial line.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/test/kernels/wire"
)

// stage tells the processes of this program what they are: the first, which the
// kernel starts, has none.
const (
	stage     = "GUEST_STAGE"
	stageReap = "reap" // process 1, after its file systems are mounted
	stageWork = "work"
	stageDrop = "drop"
	stageTry  = "try"
)

func main() {
	var err error
	switch os.Getenv(stage) {
	case "":
		err = begin()
	case stageReap:
		err = reap()
	case stageWork:
		err = work()
	case stageDrop:
		err = drop()
	case stageTry:
		err = try()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// begin mounts the file systems and starts this program again: libraries look at
// what is mounted when they are initialized.
func begin() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"},
		{"cgroup2", "/sys/fs/cgroup"}, {"bpf", "/sys/fs/bpf"}, {"tracefs", "/sys/kernel/tracing"}, {"debugfs", "/sys/kernel/debug"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.dir, err)
		}
	}
	if err := os.Chmod("/tmp", 0o1777); err != nil {
		return err
	}
	environ := []string{"PATH=/", "HOME=/tmp", stage + "=" + stageReap}
	return syscall.Exec("/proc/self/exe", []string{"guest"}, environ)
}

// reap is the rest of process 1's life: it waits for all processes that have lost
// their parents, and ends the machine after the one that works.
func reap() error {
	worker := exec.Command("/proc/self/exe")
	worker.Env = []string{"PATH=/", "HOME=/tmp", stage + "=" + stageWork}
	worker.Stdout, worker.Stderr = os.Stdout, os.Stderr
	if err := worker.Start(); err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err == nil && pid != worker.Process.Pid || errors.Is(err, unix.EINTR) {
			continue
		}
		unix.Sync()
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

// messages writes to the second serial line.
type messages struct {
	mu   sync.Mutex
	line *os.File
	err  error
}

func (m *messages) send(message wire.Message) {
	text, err := json.Marshal(message)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		_, err = m.line.Write(append(text, '\n'))
	}
	m.err = errors.Join(m.err, err)
}

func work() error {
	line, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	m := &messages{line: line}
	if err := workOn(m); err != nil {
		m.send(wire.Message{Broken: err.Error()})
	}
	m.send(wire.Message{End: true})
	// What stands in the line's buffer would be lost with the machine.
	if err := unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, 1); err != nil {
		return errors.Join(m.err, err)
	}
	return m.err
}

func workOn(m *messages) error {
	var jobs wire.Jobs
	if err := load(wire.JobsFile, &jobs); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	kernel, err := describe()
	if err != nil {
		return err
	}
	m.send(wire.Message{Kernel: &kernel})
	for _, job := range jobs.Tests {
		exit := wire.Exit{Job: job.Name}
		if err := runTests(m, job); err != nil {
			exit.Error = err.Error()
		}
		m.send(wire.Message{Exit: &exit})
	}
	for _, capabilities := range jobs.Trials {
		trial, err := runTrial(capabilities)
		if err != nil {
			return fmt.Errorf("trying capabilities %v: %w", capabilities, err)
		}
		m.send(wire.Message{Trial: trial})
	}
	return nil
}

func load(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

// loadModules loads the modules, which are listed in an order that serves.
func loadModules() error {
	var modules []string
	if err := load(wire.ModulesFile, &modules); err != nil {
		return err
	}
	for _, path := range modules {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(file.Fd()), "", 0)
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("loading %s: %w", path, err)
		}
	}
	return nil
}

func describe() (wire.Kernel, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return wire.Kernel{}, err
	}
	k := wire.Kernel{Release: unix.ByteSliceToString(name.Release[:])}
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	k.BTF = err == nil
	// Such as "none voluntary (full)".
	modes, err := os.ReadFile("/sys/kernel/debug/sched/preempt")
	if err == nil {
		_, chosen, _ := strings.Cut(string(modes), "(")
		k.Preemption, _, _ = strings.Cut(chosen, ")")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	return k, nil
}

// runTests runs a test binary and passes on what it says.
func runTests(m *messages, job wire.Job) error {
	cmd := exec.Command("/tests/"+job.Name+"/test", job.Args...)
	cmd.Dir = "/tests/" + job.Name
	// Memory is cheaper than the emulated machine's time.
	cmd.Env = []string{"PATH=/", "HOME=/tmp", "TMPDIR=/tmp", "GOGC=300"}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- passOn(m, job.Name, out) }()
	err = cmd.Wait()
	// Processes that the tests left would keep the pipe open.
	return errors.Join(err, <-done)
}

func passOn(m *messages, job string, out io.ReadCloser) error {
	defer out.Close()
	reader := bufio.NewReader(out)
	for {
		line, err := reader.ReadString('\n')
		if line != "" {
			m.send(wire.Message{Output: &wire.Output{Job: job, Line: strings.TrimRight(line, "\r\n")}})
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
