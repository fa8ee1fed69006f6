// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// What goes over the pipes between a test and its peer: JSON, requests one way and
// replies the other, in any order.

type op string

const (
	opListen    op = "listen"
	opReceived  op = "received"
	opUnlisten  op = "unlisten"
	opDial      op = "dial"
	opSend      op = "send"
	opRequest   op = "request"
	opHold      op = "hold"
	opPing      op = "ping"
	opClose     op = "close"
	opEcho      op = "echo"
	opRaw       op = "raw"
	opCalls     op = "calls"
	opLoop      op = "loop"
	opLoopCount op = "loop count"
	opLoopStop  op = "loop stop"
)

type request struct {
	ID      uint64
	Op      op
	Name    string        `json:",omitempty"`
	Network string        `json:",omitempty"`
	Local   string        `json:",omitempty"`
	Remote  string        `json:",omitempty"`
	Size    int           `json:",omitempty"`
	Count   int           `json:",omitempty"`
	CPU     int           `json:",omitempty"`
	Number  int           `json:",omitempty"`
	Timeout time.Duration `json:",omitempty"`
	Packet  []byte        `json:",omitempty"`
	Loop    *Loop         `json:",omitempty"`
	begins  func()        // is called, where not nil, just before the kernel is asked for a connection
}

type reply struct {
	ID     uint64
	Text   string      `json:",omitempty"`
	Count  uint64      `json:",omitempty"`
	Counts *LoopCounts `json:",omitempty"`
	Err    *Failure    `json:",omitempty"`
}

// Failure is what went wrong in a peer. errors.Is finds its system error, such as
// syscall.EPERM, and os.ErrDeadlineExceeded after a time-out.
type Failure struct {
	Op      string
	Message string
	Errno   syscall.Errno
	Expired bool
}

func (f *Failure) Error() string { return f.Op + ": " + f.Message }

// Timeout says whether there was no answer in time.
func (f *Failure) Timeout() bool { return f.Expired }

// Unwrap returns the system error, os.ErrDeadlineExceeded, or nil.
func (f *Failure) Unwrap() error {
	switch {
	case f.Expired:
		return os.ErrDeadlineExceeded
	case f.Errno != 0:
		return f.Errno
	}
	return nil
}

// failure makes an error fit for the pipe.
func failure(o op, err error) *Failure {
	if err == nil {
		return nil
	}
	f := &Failure{Op: string(o), Message: err.Error()}
	var timeout net.Error
	f.Expired = errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded)
	errors.As(err, &f.Errno)
	return f
}

// Loop is a request and its answer, again and again.
type Loop struct {
	// Network, Local ("": any), Remote: as for Request.
	Network, Local, Remote string
	// Size of a request, in bytes.
	Size int
	// Fresh: a new socket for each request, else one for all. A TCP connection that
	// broke is made anew.
	Fresh bool
	// Timeout of one request (0: 1 s), and the pause between two.
	Timeout, Every time.Duration
}

// LoopCounts is what became of a loop's requests.
type LoopCounts struct {
	Attempts, Answered, Failed uint64
	// Begun are the connections for which the kernel was asked: an attempt that had
	// no time left before it came to that, on a busy machine, has begun none.
	Begun uint64
	// LastError is the latest failure's.
	LastError string `json:",omitempty"`
	// Longest is the time from one answer to the next, at worst.
	Longest time.Duration
}

func (c LoopCounts) String() string {
	return fmt.Sprintf("%d attempts, %d answered, %d failed (%s), longest gap %s", c.Attempts, c.Answered, c.Failed, c.LastError, c.Longest)
}
