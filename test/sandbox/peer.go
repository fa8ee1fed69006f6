// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupVariable names the cgroup that a peer enters by itself, where the kernel
// cannot give birth to it there (before Linux 5.7).
const cgroupVariable = "PODCONFIGMAP_SANDBOX_CGROUP"

// Peer is a process inside a pod, which does as it is told. Its methods may be
// called from many goroutines at once; each waits for its own answer. Networks are
// Go's ("tcp", "udp4", …), and besides "mptcp4" and the like (Multipath TCP sockets)
// and, to connect, "tcp4in6" and "udp4in6" (an IPv6 socket goes to an IPv4 address).
// Errors are of type *Failure, so that errors.Is(err, syscall.EPERM) works.
type Peer struct {
	cmd    *exec.Cmd
	to     *os.File
	stderr bytes.Buffer
	ended  chan struct{}

	mu      sync.Mutex
	id      uint64
	waiting map[uint64]chan reply
	err     error
}

// Peer starts a process that is born in the container's cgroup and network
// namespace.
func (c *Container) Peer() *Peer {
	c.node.t.Helper()
	p, err := c.startPeer()
	if err != nil {
		c.node.t.Fatalf("starting a process in %s: %v", c.cgroup, err)
	}
	c.add(p)
	return p
}

func (c *Container) startPeer() (*Peer, error) {
	p, err := c.startPeerInside()
	if unknownClone(err) {
		return c.startPeerOutside()
	}
	return p, err
}

// startPeerInside starts a process that is in the container's cgroup from birth.
func (c *Container) startPeerInside() (*Peer, error) {
	dir, err := os.Open(c.cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd, err := again(rolePeer)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return c.start(cmd)
}

// startPeerOutside starts a process that enters the container's cgroup by itself,
// before it does anything else.
func (c *Container) startPeerOutside() (*Peer, error) {
	cmd, err := again(rolePeer)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, cgroupVariable+"="+c.cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c.start(cmd)
}

// unknownClone says whether an error means that the kernel cannot give birth to a
// process in a cgroup.
func unknownClone(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.E2BIG)
}

// start starts the process and waits until it answers.
func (c *Container) start(cmd *exec.Cmd) (*Peer, error) {
	requests, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer requests.Close()
	from, replies, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	defer replies.Close()
	p := &Peer{cmd: cmd, to: to, ended: make(chan struct{}), waiting: map[uint64]chan reply{}}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = requests, replies, &p.stderr
	if err := within(c.netns, cmd.Start); err != nil {
		return nil, errors.Join(err, to.Close(), from.Close())
	}
	go p.receive(from)
	if _, err := p.call(request{Op: opReceived}); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// receive hands out replies until the process ends.
func (p *Peer) receive(from *os.File) {
	defer close(p.ended)
	decoder := json.NewDecoder(from)
	for {
		var r reply
		if decoder.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		answer := p.waiting[r.ID]
		delete(p.waiting, r.ID)
		p.mu.Unlock()
		if answer != nil {
			answer <- r
		}
	}
	from.Close()
	err := p.cmd.Wait()
	p.mu.Lock()
	p.err = fmt.Errorf("the process has ended: %w", errors.Join(err, errors.New(p.stderr.String())))
	p.mu.Unlock()
}

// call sends a request and waits for its reply.
func (p *Peer) call(r request) (reply, error) {
	answer := make(chan reply, 1)
	if err := p.send(r, answer); err != nil {
		return reply{}, err
	}
	// Processes start and threads run late on a busy machine.
	timer := time.NewTimer(r.Timeout + 2*patience)
	defer timer.Stop()
	select {
	case a := <-answer:
		if a.Err != nil {
			return a, a.Err
		}
		return a, nil
	case <-p.ended:
		p.mu.Lock()
		defer p.mu.Unlock()
		return reply{}, fmt.Errorf("%s: %w", r.Op, p.err)
	case <-timer.C:
		return reply{}, fmt.Errorf("%s: process %d does not answer", r.Op, p.PID())
	}
}

func (p *Peer) send(r request, answer chan reply) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id++
	r.ID = p.id
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	p.waiting[r.ID] = answer
	if _, err := p.to.Write(append(data, '\n')); err != nil {
		delete(p.waiting, r.ID)
		return fmt.Errorf("%s: telling process %d: %w", r.Op, p.PID(), err)
	}
	return nil
}

// end kills the process and waits until it is gone.
func (p *Peer) end() {
	_ = p.cmd.Process.Kill()
	<-p.ended
	p.to.Close()
}

// Stop ends the process and waits until it is gone.
func (p *Peer) Stop() { p.end() }

// PID is the process's.
func (p *Peer) PID() int { return p.cmd.Process.Pid }

func (p *Peer) do(r request) error {
	_, err := p.call(r)
	return err
}

// Listen starts an echo server and returns its address, with the port that it was
// given where address has port 0.
func (p *Peer) Listen(network, address string) (string, error) {
	r, err := p.call(request{Op: opListen, Network: network, Local: address})
	return r.Text, err
}

// Received is how many connections (TCP) or datagrams (UDP) have reached the echo
// server of that network and address (as Listen returned it). The server counts a
// connection when it accepts it, which can be later than the other side connects.
func (p *Peer) Received(network, address string) (uint64, error) {
	r, err := p.call(request{Op: opReceived, Network: network, Local: address})
	return r.Count, err
}

// Unlisten stops an echo server and closes its connections.
func (p *Peer) Unlisten(network, address string) error {
	return p.do(request{Op: opUnlisten, Network: network, Local: address})
}

// Dial connects a fresh socket. TCP: that is all; UDP: a datagram goes over the
// connected socket and must come back.
func (p *Peer) Dial(network, address string, timeout time.Duration) error {
	return p.do(request{Op: opDial, Network: network, Remote: address, Timeout: timeout})
}

// Send sends one UDP datagram of size bytes from an unconnected socket, which is
// bound to local unless that is "", and waits for no answer.
func (p *Peer) Send(network, local, remote string, size int) error {
	return p.do(request{Op: opSend, Network: network, Local: local, Remote: remote, Size: size})
}

// Request sends size bytes to an echo server from a fresh socket (UDP:
// unconnected), which is bound to local unless that is "", and compares what comes
// back.
func (p *Peer) Request(network, local, remote string, size int, timeout time.Duration) error {
	return p.do(request{Op: opRequest, Network: network, Local: local, Remote: remote, Size: size, Timeout: timeout})
}

// Hold opens a connection (UDP: an unconnected socket that talks to one address)
// that stays, under a name.
func (p *Peer) Hold(name, network, local, remote string, timeout time.Duration) error {
	return p.do(request{Op: opHold, Name: name, Network: network, Local: local, Remote: remote, Timeout: timeout})
}

// Ping sends size bytes over a held connection and compares what comes back.
func (p *Peer) Ping(name string, size int, timeout time.Duration) error {
	return p.do(request{Op: opPing, Name: name, Size: size, Timeout: timeout})
}

// Close closes a held connection.
func (p *Peer) Close(name string) error { return p.do(request{Op: opClose, Name: name}) }

// Echo sends an ICMP or ICMPv6 echo request with size bytes of data and waits for
// the reply.
func (p *Peer) Echo(address string, size int, timeout time.Duration) error {
	return p.do(request{Op: opEcho, Remote: address, Size: size, Timeout: timeout})
}

// SendRaw sends a whole IPv4 or IPv6 packet, header first, as it is. (For IPv4 the
// kernel fills in the checksum and length of the header, and a source and an
// identification of 0.)
func (p *Peer) SendRaw(packet []byte) error { return p.do(request{Op: opRaw, Packet: packet}) }

// Calls makes n system calls getppid, on the given CPU (-1: on any). Nothing else
// in a peer calls it.
func (p *Peer) Calls(cpu, n int) error { return p.CallNumber(unix.SYS_GETPPID, cpu, n) }

// CallNumber makes n system calls of a number, on the given CPU (-1: on any), from
// one thread, with -1 for every argument: those that take any fail without effect.
// Other threads of the process (its Go runtime) may make such calls, too.
func (p *Peer) CallNumber(number, cpu, n int) error {
	return p.do(request{Op: opCalls, Number: number, CPU: cpu, Count: n})
}

// StartLoop starts a loop of requests under a name.
func (p *Peer) StartLoop(name string, l Loop) error {
	return p.do(request{Op: opLoop, Name: name, Loop: &l})
}

// LoopCounts is what became of a loop's requests so far.
func (p *Peer) LoopCounts(name string) (LoopCounts, error) {
	return p.counts(request{Op: opLoopCount, Name: name})
}

// StopLoop ends a loop after the request that is under way.
func (p *Peer) StopLoop(name string) (LoopCounts, error) {
	return p.counts(request{Op: opLoopStop, Name: name})
}

func (p *Peer) counts(r request) (LoopCounts, error) {
	a, err := p.call(r)
	if a.Counts == nil {
		return LoopCounts{}, err
	}
	return *a.Counts, err
}
