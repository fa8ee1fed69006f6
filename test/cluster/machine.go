// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podconfigmap/podconfigmap-controller/test/controlplane"
)

const (
	// patience bounds each wait for something that takes moments on a quiet machine.
	patience = 3 * time.Minute
	// grace is how long a program may take to end by itself.
	grace = 20 * time.Second
	// shownLines of a log end an error.
	shownLines = 15
)

// machine is a set of namespaces: network, mounts, processes, host name, IPC and
// cgroups. Its first process is this very program, started again; all that runs in
// it ends with that one, and that one with this process, however it ends.
type machine struct {
	name   string
	logs   string // the host's folder of its /var/log
	cgroup string // the host's path of its root
	pid    int    // of its first process, on the host; of QEMU
	// virtual: it is a machine of QEMU's.
	virtual bool
	cmd     *exec.Cmd
	gone    chan struct{} // closed when it has ended

	mu      sync.Mutex
	to      *json.Encoder
	last    int
	waiting map[int]chan report
}

// startMachine makes a machine in an existing cgroup, and waits until it is
// furnished. Its network has nothing but a loopback, which is down.
func startMachine(ctx context.Context, s spec, cgroup, logs, specFile string) (*machine, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(specFile, text, 0o600); err != nil {
		return nil, err
	}
	m := &machine{name: s.Name, logs: logs, cgroup: cgroup, gone: make(chan struct{}), waiting: map[int]chan report{}}
	if err := m.launch(specFile); err != nil {
		return nil, fmt.Errorf("starting machine %s: %w", s.Name, err)
	}
	if _, err := m.await(ctx, m.waiting[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("furnishing machine %s: %w; it says:\n%s", s.Name, err, m.tail("machine")), m.kill())
	}
	return m, nil
}

func (m *machine) launch(specFile string) error {
	cgroup, err := os.Open(m.cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	log, err := os.OpenFile(m.log("machine"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	m.cmd = exec.Command("/proc/self/exe")
	m.cmd.Args = []string{"cluster-" + m.name} // for who looks at the list of processes
	m.cmd.Env = []string{roleVariable + "=" + roleEnter, specVariable + "=" + specFile}
	m.cmd.Stderr = log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
	}
	return m.begin()
}

// begin starts the command, with which orders and reports are exchanged.
func (m *machine) begin() error {
	orders, err := m.cmd.StdinPipe()
	if err != nil {
		return err
	}
	answers, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	m.to = json.NewEncoder(orders)
	m.waiting[0] = make(chan report, 1)
	if err := controlplane.StartChild(m.cmd); err != nil {
		return err
	}
	m.pid = m.cmd.Process.Pid
	go m.listen(json.NewDecoder(answers))
	return nil
}

// listen takes the answers, until the machine is gone.
func (m *machine) listen(answers *json.Decoder) {
	for {
		var r report
		if answers.Decode(&r) != nil {
			break
		}
		m.mu.Lock()
		to := m.waiting[r.ID]
		delete(m.waiting, r.ID)
		m.mu.Unlock()
		if to != nil {
			to <- r
		}
	}
	_ = m.cmd.Wait() // that it was killed is no news
	close(m.gone)
}

// ask gives an order and waits for the answer.
func (m *machine) ask(ctx context.Context, o order) (report, error) {
	answer := make(chan report, 1)
	m.mu.Lock()
	m.last++
	o.ID = m.last
	m.waiting[o.ID] = answer
	err := m.to.Encode(o)
	m.mu.Unlock()
	if err != nil {
		return report{}, fmt.Errorf("giving machine %s an order: %w", m.name, err)
	}
	return m.await(ctx, answer)
}

func (m *machine) await(ctx context.Context, answer <-chan report) (report, error) {
	select {
	case r := <-answer:
		if r.Err != "" {
			return r, errors.New(r.Err)
		}
		return r, nil
	case <-m.gone:
		return report{}, errors.New("the machine has ended")
	case <-ctx.Done():
		return report{}, ctx.Err()
	}
}

// start starts a program, whose output goes to its log, and waits until ready, which
// may be nil, returns no error.
func (m *machine) start(ctx context.Context, name string, argv []string, ready func(context.Context) error) error {
	if _, err := m.ask(ctx, order{Op: opStart, Name: name, Argv: argv, Log: m.logInside(name)}); err != nil {
		return fmt.Errorf("starting %s on %s: %w", name, m.name, err)
	}
	if ready == nil {
		return nil
	}
	err := awaitWithin(ctx, m.patience(), func(ctx context.Context) error {
		state, err := m.ask(ctx, order{Op: opState, Name: name})
		if err == nil && !state.Running {
			return &final{fmt.Errorf("it ended with code %d", state.Code)}
		}
		return errors.Join(err, ready(ctx))
	})
	if err != nil {
		return fmt.Errorf("waiting for %s on %s: %w; its log ends with:\n%s", name, m.name, err, m.tail(name))
	}
	return nil
}

// final is an error that more waiting does not mend.
type final struct{ error }

// await calls ready until it returns no error, or a final one, or patience ends.
func await(ctx context.Context, ready func(context.Context) error) error {
	return awaitWithin(ctx, patience, ready)
}

func awaitWithin(ctx context.Context, within time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := ready(ctx)
		if last := (*final)(nil); err == nil || errors.As(err, &last) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// signal sends a signal to a program.
func (m *machine) signal(ctx context.Context, name string, s syscall.Signal) error {
	_, err := m.ask(ctx, order{Op: opSignal, Name: name, Signal: int(s)})
	return err
}

// stop asks a program to end and waits until it has, or kills it.
func (m *machine) stop(ctx context.Context, name string) error {
	if err := m.signal(ctx, name, syscall.SIGTERM); err != nil {
		return err
	}
	if m.ended(ctx, name, grace) == nil {
		return nil
	}
	return m.killProgram(ctx, name)
}

// killProgram ends a program at once.
func (m *machine) killProgram(ctx context.Context, name string) error {
	if err := m.signal(ctx, name, syscall.SIGKILL); err != nil {
		return err
	}
	return m.ended(ctx, name, m.patience())
}

func (m *machine) ended(ctx context.Context, name string, within time.Duration) error {
	return awaitWithin(ctx, within, func(ctx context.Context) error {
		state, err := m.ask(ctx, order{Op: opState, Name: name})
		if err == nil && state.Running {
			err = fmt.Errorf("%s still runs", name)
		}
		return err
	})
}

// run runs a command in the machine and returns what it wrote, to both outputs. A
// code other than 0 is an error.
func (m *machine) run(ctx context.Context, argv ...string) (string, error) {
	limit := m.patience()
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	r, err := m.ask(ctx, order{Op: opRun, Argv: argv, Seconds: int(limit.Seconds()) + 1})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("code %d", r.Code)
	}
	if err != nil {
		return r.Out, fmt.Errorf("running %s on %s: %w\n%s", strings.Join(argv, " "), m.name, err, lastLines(r.Out, shownLines))
	}
	return r.Out, nil
}

// connects fails unless somebody listens at a Unix socket of the machine.
func (m *machine) connects(ctx context.Context, socket string) error {
	_, err := m.ask(ctx, order{Op: opDial, Name: socket})
	return err
}

// kill ends the machine and all that runs in it, and waits until that is gone.
func (m *machine) kill() error {
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending machine %s: %w", m.name, err)
	}
	select {
	case <-m.gone:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("ending machine %s: process %d is still there after %s", m.name, m.pid, patience)
	}
}

// patience is that with what the machine does.
func (m *machine) patience() time.Duration {
	if m.virtual {
		return guestPatience
	}
	return patience
}

// logInside is where a program of the machine writes to. A virtual machine shares no
// folder with the host.
func (m *machine) logInside(program string) string {
	switch {
	case !m.virtual:
		return "/var/log/" + program + ".log"
	case program == Containerd:
		return containerdLine
	}
	return kubeletLine
}

func (m *machine) log(program string) string { return filepath.Join(m.logs, program+".log") }

func (m *machine) tail(program string) string {
	text, err := os.ReadFile(m.log(program))
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
