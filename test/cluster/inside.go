// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The variables that tell a process what this package started it for.
const (
	roleVariable = "PODCONFIGMAP_CLUSTER_ROLE"
	specVariable = "PODCONFIGMAP_CLUSTER_SPEC"

	roleEnter   = "enter"
	roleMachine = "machine"
	roleJanitor = "janitor"
	roleTrial   = "trial"
)

// programPath is where programs are looked for inside a machine.
const programPath = "/opt/cluster:/opt/runtime:/opt/kubernetes:/opt/dns:/usr/sbin:/usr/bin:/sbin:/bin"

// init turns a process that this package started into what it was started for,
// before any other code of the program that imports it.
func init() {
	var err error
	switch os.Getenv(roleVariable) {
	case roleEnter:
		err = enter()
	case roleMachine:
		err = beMachine(os.Getenv(specVariable))
	case roleJanitor:
		err = beJanitor(os.Stdin, os.Args[1:])
	case roleTrial:
		err = beTrial(os.Getenv(specVariable))
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// enter makes the machine's cgroup namespace, whose root is the cgroup that this
// process was born in, and begins anew: a namespace is entered by one thread, and
// only an exec brings all others there.
func enter() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	environ := []string{roleVariable + "=" + roleMachine, specVariable + "=" + os.Getenv(specVariable), "PATH=" + programPath}
	return fmt.Errorf("starting anew: %w", syscall.Exec("/proc/self/exe", os.Args, environ))
}

// order is what a machine is asked to do, a line of JSON on its standard input.
type order struct {
	ID   int
	Op   string
	Name string   // of the program, for all but opRun; of the Unix socket, for opDial
	Argv []string // opStart, opRun
	Log  string   // opStart: the file that gets its output
	// Signal is sent by opSignal.
	Signal int
	// Seconds that opRun gives a command.
	Seconds int
}

// report answers the order of the same ID.
type report struct {
	ID   int
	PID  int    // opStart, in the machine's PID namespace
	Out  string // opRun
	Code int    // opRun, opState: 128 and the number of a signal that ended it
	// Running says whether the program of opState runs.
	Running bool
	Err     string
}

const (
	opStart  = "start"
	opSignal = "signal"
	opState  = "state"
	opRun    = "run"
	opDial   = "dial"
)

// inside is a machine's first process.
type inside struct {
	spec spec

	mu       sync.Mutex
	children map[int]*child
	programs map[string]*child

	out sync.Mutex
	to  *json.Encoder
}

// child is a process that was started by an order.
type child struct {
	pid  int
	done chan struct{} // closed when it has ended
	code int           // after done
}

// beMachine serves orders until nobody can give any more; then it ends, and with it
// everything that runs in its PID namespace.
func beMachine(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s spec
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if err := s.furnish(); err != nil {
		return fmt.Errorf("furnishing %s: %w", s.Name, err)
	}
	return serveOrders(s, os.Stdin, os.Stdout)
}

// serveOrders tells that the machine is ready, and serves orders until there are no
// more.
func serveOrders(s spec, from io.Reader, to io.Writer) error {
	in := &inside{spec: s, children: map[int]*child{}, programs: map[string]*child{}, to: json.NewEncoder(to)}
	// Only the end of the orders ends it. Not signal.Ignore: what is started here
	// would inherit it.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go in.reap()
	in.answer(report{}) // it is ready
	for decoder := json.NewDecoder(from); ; {
		var o order
		if err := decoder.Decode(&o); err != nil {
			return nil
		}
		go in.serve(o)
	}
}

func (in *inside) serve(o order) {
	answer, err := in.carryOut(o)
	answer.ID = o.ID
	if err != nil {
		answer.Err = err.Error()
	}
	in.answer(answer)
}

func (in *inside) answer(r report) {
	in.out.Lock()
	defer in.out.Unlock()
	if in.to.Encode(r) != nil {
		os.Exit(0) // nobody is left to answer
	}
}

func (in *inside) carryOut(o order) (report, error) {
	switch o.Op {
	case opStart:
		return in.start(o)
	case opSignal:
		return report{}, in.signal(o.Name, unix.Signal(o.Signal))
	case opState:
		return in.state(o.Name)
	case opRun:
		return in.run(o)
	case opDial:
		return report{}, connects(o.Name)
	}
	return report{}, fmt.Errorf("unknown order %q", o.Op)
}

// start starts a program that runs until it is stopped.
func (in *inside) start(o order) (report, error) {
	log, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return report{}, err
	}
	defer log.Close()
	in.mu.Lock()
	defer in.mu.Unlock()
	if p := in.programs[o.Name]; p != nil && !p.ended() {
		return report{}, fmt.Errorf("starting %s: it runs already", o.Name)
	}
	attributes := &syscall.SysProcAttr{Setsid: true}
	if in.spec.Node {
		cgroup, err := systemCgroup(o.Name)
		if err != nil {
			return report{}, err
		}
		defer cgroup.Close()
		attributes.UseCgroupFD, attributes.CgroupFD = true, int(cgroup.Fd())
	}
	p, err := in.spawn(o.Argv, log, attributes)
	if err != nil {
		return report{}, err
	}
	in.programs[o.Name] = p
	return report{PID: p.pid}, nil
}

// systemCgroup makes the cgroup of a program that is no pod's.
func systemCgroup(name string) (*os.File, error) {
	dir := filepath.Join(cgroupRoot, "system", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// spawn starts a process. The lock is held, so that reap knows the process when it
// ends.
func (in *inside) spawn(argv []string, out *os.File, attributes *syscall.SysProcAttr) (*child, error) {
	path, err := lookUp(argv[0])
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	process, err := os.StartProcess(path, argv, &os.ProcAttr{
		Dir: "/", Env: append([]string{"PATH=" + programPath, "HOME=/root"}, in.spec.Environ...), Files: []*os.File{null, out, out}, Sys: attributes,
	})
	if err != nil {
		return nil, err
	}
	c := &child{pid: process.Pid, done: make(chan struct{})}
	in.children[c.pid] = c
	return c, process.Release()
}

// lookUp finds a program; exec.LookPath would take the path that this process was
// started with.
func lookUp(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(programPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return path, nil
		}
	}
	return "", fmt.Errorf("looking for %s in %s: %w", name, programPath, os.ErrNotExist)
}

// reap takes the exit status of every process that ends: those that were started
// here, and those that lost their parents.
func (in *inside) reap() {
	born := make(chan os.Signal, 1)
	signal.Notify(born, unix.SIGCHLD)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if pid <= 0 {
			<-born
			continue
		}
		in.mu.Lock()
		c := in.children[pid]
		delete(in.children, pid)
		in.mu.Unlock()
		if c == nil {
			continue
		}
		if c.code = status.ExitStatus(); status.Signaled() {
			c.code = 128 + int(status.Signal())
		}
		close(c.done)
	}
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (in *inside) program(name string) (*child, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if p := in.programs[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s was never started", name)
}

// signal sends a signal to a program, which may have ended.
func (in *inside) signal(name string, s unix.Signal) error {
	p, err := in.program(name)
	if err != nil {
		return err
	}
	if p.ended() {
		return nil
	}
	if err := unix.Kill(p.pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %v to %s: %w", s, name, err)
	}
	return nil
}

func (in *inside) state(name string) (report, error) {
	p, err := in.program(name)
	if err != nil {
		return report{}, err
	}
	if p.ended() {
		return report{Code: p.code}, nil
	}
	return report{Running: true}, nil
}

// connects tells whether somebody listens at a Unix socket.
func connects(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// run runs a command to its end.
func (in *inside) run(o order) (report, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return report{}, err
	}
	defer r.Close()
	in.mu.Lock()
	c, err := in.spawn(o.Argv, w, &syscall.SysProcAttr{Setsid: true})
	in.mu.Unlock()
	w.Close()
	if err != nil {
		return report{}, err
	}
	limit := time.AfterFunc(time.Duration(o.Seconds)*time.Second, func() { _ = unix.Kill(-c.pid, unix.SIGKILL) })
	out, err := io.ReadAll(r)
	<-c.done
	if !limit.Stop() {
		err = errors.Join(err, fmt.Errorf("it took longer than %d s", o.Seconds))
	}
	return report{Out: string(out), Code: c.code}, err
}

// moveTo brings this process into a cgroup.
func moveTo(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}
