// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 3 * time.Minute
	stopGrace    = 10 * time.Second
	shownLines   = 15 // of a log, in an error
)

// process is a running program whose output goes to a log.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why it ended; readable after done
}

// startProcess starts a program that appends to the file log.
func startProcess(name, log, path string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer out.Close() // the child has its own copy
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = environ(os.Environ())
	if err := StartChild(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// environ has the control plane collect garbage seldom, unless GOGC says how often: its
// processes share two cores with what is tested or measured, and with thousands of pods in
// its caches the API server would spend a quarter of its time on that.
func environ(own []string) []string {
	const variable = "GOGC="
	if slices.ContainsFunc(own, func(s string) bool { return strings.HasPrefix(s, variable) }) {
		return own
	}
	return append(slices.Clip(own), variable+"400")
}

// StartChild starts a command that ends when this process does, however it ends.
func StartChild(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A Ctrl-C at the terminal reaches every process of its group at once, but these
	// must be stopped in order.
	cmd.SysProcAttr.Setpgid = true
	// Nothing may outlive a killed test.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return onLastingThread(cmd.Start)
}

// lastingThread serves functions on one thread that never ends.
var lastingThread = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

// onLastingThread runs start on a thread that lives as long as this process.
// The kernel sends the parent-death signal when the thread that started the
// child ends (prctl(2), PR_SET_PDEATHSIG), and Go ends threads as it likes.
func onLastingThread(start func() error) error {
	result := make(chan error)
	lastingThread() <- func() { result <- start() }
	return <-result
}

// await calls ready until it returns nil. It gives up when the process ends,
// ctx ends or startTimeout has passed.
func (p *process) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("waiting for %s: it ended (%w); its log ends with:\n%s", p.name, p.err, p.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (%w); its log ends with:\n%s", p.name, ctx.Err(), err, p.lastLog())
		case <-tick.C:
		}
	}
}

func (p *process) lastLog() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(text), shownLines)
}

// lastLines returns the last n lines of text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// stop asks the process to end, and after a while kills it.
func (p *process) stop() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopGrace):
		return p.kill()
	}
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to %s (%d): %w", s, p.name, p.cmd.Process.Pid, err)
	}
	return nil
}
