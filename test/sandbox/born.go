// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Newborn is a process that acts from its very first instruction: a fork without
// exec, with no runtime that would start first. All that it does before is to
// close the files that it has inherited.
type Newborn struct {
	pid    int
	shared []byte
	once   sync.Once
	status unix.WaitStatus
	err    error
}

// NewbornCounts is what a connecting Newborn has seen.
type NewbornCounts struct {
	// Attempts that ended, and what became of them: connected (UDP: answered),
	// denied with EPERM, unanswered, or failed in another way.
	Attempts, Through, Denied, Unanswered, Failed uint64
	// LastErrno is the system error of the latest one that failed otherwise.
	LastErrno syscall.Errno
}

// life is the memory that a newborn shares with its parent. All of it is set up
// before the fork: afterwards the child may only make raw system calls.
type life struct {
	// What to do.
	calls    uint64 // getppid so often, then exit; 0: connect in a loop
	datagram bool
	domain   uintptr
	size     uintptr // of address
	address  [28]byte
	wait     unix.Timespec
	procs    int // file to write "0" to at first, or -1
	parent   uintptr

	// What became of it.
	through, denied, unanswered, failed, errno uint64

	// Room for what the child's system calls read and write.
	poll   unix.PollFd
	now    unix.Timespec
	value  uint32
	length uint32
	buffer [8]byte
}

// Connect starts a process that from its first instruction on connects to an
// address ("tcp" or "udp", no name), again and again with fresh sockets: each
// attempt may take as long as wait. A UDP attempt is a datagram from an unconnected
// socket that must be answered.
func (c *Container) Connect(network, address string, wait time.Duration) *Newborn {
	c.node.t.Helper()
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		c.node.t.Fatalf("connecting from %s: %v", c.cgroup, err)
	}
	return c.birth(func(l *life) {
		l.datagram = len(network) >= 3 && network[:3] == "udp"
		l.wait = unix.NsecToTimespec(wait.Nanoseconds())
		l.aim(to)
	})
}

// FirstCalls runs a process that makes exactly n system calls getppid, from its
// first instruction on, and ends. It returns its pid.
func (c *Container) FirstCalls(n int) (int, error) {
	c.node.t.Helper()
	b := c.birth(func(l *life) { l.calls = uint64(n) })
	return b.pid, b.wait()
}

func (l *life) aim(to netip.AddrPort) {
	port := [2]byte{byte(to.Port() >> 8), byte(to.Port())}
	if to.Addr().Is4() {
		l.domain, l.size = unix.AF_INET, unix.SizeofSockaddrInet4
		ip := to.Addr().As4()
		copy(l.address[4:], ip[:])
	} else {
		l.domain, l.size = unix.AF_INET6, unix.SizeofSockaddrInet6
		ip := to.Addr().As16()
		copy(l.address[8:], ip[:])
	}
	*(*uint16)(unsafe.Pointer(&l.address[0])) = uint16(l.domain)
	copy(l.address[2:], port[:])
}

func (c *Container) birth(setUp func(*life)) *Newborn {
	c.node.t.Helper()
	shared, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		c.node.t.Fatalf("sharing memory: %v", err)
	}
	b := &Newborn{shared: shared}
	l := b.life()
	l.procs, l.parent = -1, uintptr(os.Getpid())
	setUp(l)
	if b.pid, err = c.fork(l); err != nil {
		_ = unix.Munmap(shared)
		c.node.t.Fatalf("starting a process in %s: %v", c.cgroup, err)
	}
	c.add(b)
	return b
}

func (b *Newborn) life() *life { return (*life)(unsafe.Pointer(&b.shared[0])) }

// PID is the process's.
func (b *Newborn) PID() int { return b.pid }

// Counts is what it has seen so far.
func (b *Newborn) Counts() NewbornCounts {
	l := b.life()
	c := NewbornCounts{
		Through: atomic.LoadUint64(&l.through), Denied: atomic.LoadUint64(&l.denied),
		Unanswered: atomic.LoadUint64(&l.unanswered), Failed: atomic.LoadUint64(&l.failed),
		LastErrno: syscall.Errno(atomic.LoadUint64(&l.errno)),
	}
	// Not counted by the child: a kill between two counts would let them differ.
	c.Attempts = c.Through + c.Denied + c.Unanswered + c.Failed
	return c
}

// Stop ends the process.
func (b *Newborn) Stop() NewbornCounts {
	b.end()
	return b.Counts()
}

func (b *Newborn) end() {
	b.once.Do(func() {
		_ = unix.Kill(b.pid, unix.SIGKILL)
		b.reap()
	})
}

// wait waits until the process has ended by itself.
func (b *Newborn) wait() error {
	b.once.Do(func() {
		if b.reap(); b.err == nil && (!b.status.Exited() || b.status.ExitStatus() != 0) {
			b.err = fmt.Errorf("process %d: wait status %#x", b.pid, uint32(b.status))
		}
	})
	return b.err
}

func (b *Newborn) reap() {
	for {
		if _, b.err = unix.Wait4(b.pid, &b.status, 0, nil); !errors.Is(b.err, unix.EINTR) {
			return
		}
	}
}

// cloneArgs is struct clone_args of clone3(2), as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

// fork gives birth to a process that lives l.
func (c *Container) fork(l *life) (int, error) {
	pid, err := c.forkInside(l)
	if unknownClone(err) {
		return c.forkOutside(l)
	}
	return pid, err
}

// forkInside makes a process that is in the container's cgroup from birth.
func (c *Container) forkInside(l *life) (pid int, err error) {
	dir, err := os.Open(c.cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	args := cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(dir.Fd())}
	err = within(c.netns, func() (err error) {
		pid, err = forkInto(&args, l)
		return err
	})
	return pid, err
}

// forkOutside makes a process that enters the container's cgroup as its first act.
func (c *Container) forkOutside(l *life) (pid int, err error) {
	procs, err := os.OpenFile(filepath.Join(c.cgroup, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer procs.Close()
	l.procs = int(procs.Fd())
	err = within(c.netns, func() (err error) {
		pid, err = forkInto(nil, l)
		return err
	})
	return pid, err
}

// forkInto forks without signals: a handler of Go's runtime must not run in the
// child.
func forkInto(args *cloneArgs, l *life) (int, error) {
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	syscall.ForkLock.Lock() // no descriptor without close-on-exec may slip in
	defer syscall.ForkLock.Unlock()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return 0, err
	}
	pid, errno := rawFork(args, l)
	runtime.KeepAlive(args)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return pid, err
	}
	if errno != 0 {
		return 0, errno
	}
	return pid, nil
}

// rawFork forks; the child never returns from it. From the fork on nothing may
// grow the stack, allocate, or be instrumented: the child has one thread, and none
// of Go's runtime works in it.
//
//go:noinline
//go:norace
//go:nocheckptr
func rawFork(args *cloneArgs, l *life) (int, syscall.Errno) {
	var pid uintptr
	var errno syscall.Errno
	if args != nil {
		pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	}
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	if l.procs >= 0 {
		l.buffer[0] = '0'
		syscall.RawSyscall(unix.SYS_WRITE, uintptr(l.procs), uintptr(unsafe.Pointer(&l.buffer[0])), 1)
	}
	closeAll()
	for i := uint64(0); i < l.calls; i++ {
		syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
	}
	if l.calls == 0 {
		connectForever(l)
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// closeAll closes what the child has open of its parent's: a program that the
// parent detaches would live on, and a pipe that it closes would not end.
//
//go:nosplit
//go:norace
func closeAll() {
	const all = 1024 // before Linux 5.9: more than a test has
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 0, uintptr(^uint32(0)), 0); errno == 0 {
		return
	}
	for fd := uintptr(0); fd < all; fd++ {
		syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	}
}

// connectForever makes one attempt after the other until the parent is gone.
//
//go:nosplit
//go:norace
//go:nocheckptr
func connectForever(l *life) {
	for {
		errno := attempt(l)
		switch errno {
		case 0:
			l.through++
		case unix.EPERM:
			l.denied++
		case unix.ETIMEDOUT:
			l.unanswered++
		default:
			l.failed++
			l.errno = uint64(errno)
		}
		if parent, _, _ := syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); parent != l.parent {
			return
		}
	}
}

// attempt makes one connection, and returns ETIMEDOUT where there was no answer.
//
//go:nosplit
//go:norace
//go:nocheckptr
func attempt(l *life) syscall.Errno {
	kind, events := uintptr(unix.SOCK_STREAM), int16(unix.POLLOUT)
	if l.datagram {
		kind, events = unix.SOCK_DGRAM, unix.POLLIN
	}
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, l.domain, kind|unix.SOCK_NONBLOCK, 0)
	if errno != 0 {
		return errno
	}
	if l.datagram {
		_, _, errno = syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&l.buffer[0])), 8, 0, uintptr(unsafe.Pointer(&l.address[0])), l.size)
	} else {
		_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&l.address[0])), l.size)
	}
	if errno == 0 || errno == unix.EINPROGRESS {
		errno = await(l, fd, events)
	}
	syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	return errno
}

// await waits for an answer on a socket, and returns the socket's error.
//
//go:nosplit
//go:norace
//go:nocheckptr
func await(l *life, fd uintptr, events int16) syscall.Errno {
	l.poll.Fd, l.poll.Events, l.poll.Revents = int32(fd), events, 0
	l.now = l.wait // ppoll counts it down
	ready, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&l.poll)), 1, uintptr(unsafe.Pointer(&l.now)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if ready == 0 {
		return unix.ETIMEDOUT
	}
	l.value, l.length = 0, 4
	_, _, errno = syscall.RawSyscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&l.value)), uintptr(unsafe.Pointer(&l.length)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(l.value)
}
