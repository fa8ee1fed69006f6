// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside is the state of a peer, in its own process.
type inside struct {
	mu      sync.Mutex
	servers map[string]*server
	held    map[string]*conversation
	loops   map[string]*loop

	out sync.Mutex
	to  *json.Encoder
}

// servePeer is a peer's main function: it carries out requests, each in a
// goroutine of its own, until the test ends.
func servePeer() {
	if dir := os.Getenv(cgroupVariable); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	in := &inside{
		servers: map[string]*server{}, held: map[string]*conversation{}, loops: map[string]*loop{},
		to: json.NewEncoder(os.Stdout),
	}
	for decoder := json.NewDecoder(os.Stdin); ; {
		var r request
		if decoder.Decode(&r) != nil {
			return
		}
		go in.serve(r)
	}
}

func (in *inside) serve(r request) {
	answer, err := in.carryOut(r)
	answer.ID, answer.Err = r.ID, failure(r.Op, err)
	in.out.Lock()
	defer in.out.Unlock()
	if in.to.Encode(answer) != nil {
		os.Exit(0) // nobody is left to answer
	}
}

func (in *inside) carryOut(r request) (reply, error) {
	switch r.Op {
	case opListen, opReceived, opUnlisten:
		return in.serverOp(r)
	case opHold, opPing, opClose:
		return reply{}, in.heldOp(r)
	case opLoop, opLoopCount, opLoopStop:
		return in.loopOp(r)
	case opDial:
		return reply{}, dial(r)
	case opSend:
		return reply{}, sendOnly(r)
	case opRequest:
		return reply{}, once(r)
	case opEcho:
		return reply{}, echo(r)
	case opRaw:
		return reply{}, sendRaw(r.Packet)
	case opCalls:
		return reply{}, calls(r.Number, r.CPU, r.Count)
	}
	return reply{}, fmt.Errorf("unknown request %q", r.Op)
}

// calls makes n system calls of a number on one CPU.
func calls(number, cpu, n int) error {
	if cpu >= 0 {
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("going to CPU %d: %w", cpu, err)
		}
	}
	const none = ^uintptr(0)
	for range n {
		// Errors are expected, but for a call that does not exist at all.
		if _, _, errno := syscall.RawSyscall6(uintptr(number), none, none, none, none, none, none); errno == unix.ENOSYS {
			return fmt.Errorf("system call %d: %w", number, errno)
		}
	}
	return nil
}
