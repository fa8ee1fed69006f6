// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxDatagram is more than any datagram holds.
const maxDatagram = 1 << 16

// server is an echo server. Exactly one of listener and packets is set.
type server struct {
	listener net.Listener
	packets  net.PacketConn
	received atomic.Uint64

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func (in *inside) serverOp(r request) (reply, error) {
	if r.Op == opListen {
		return in.listen(r)
	}
	if r.Network == "" { // sent at the start, to see whether the process is there
		return reply{}, nil
	}
	key := serverKey(r.Network, r.Local)
	in.mu.Lock()
	s, ok := in.servers[key]
	if ok && r.Op == opUnlisten {
		delete(in.servers, key)
	}
	in.mu.Unlock()
	if !ok {
		return reply{}, fmt.Errorf("no server %s", key)
	}
	if r.Op == opUnlisten {
		return reply{}, s.close()
	}
	return reply{Count: s.received.Load()}, nil
}

// serverKey tells servers apart: tcp4 and tcp are the same for one address.
func serverKey(network, address string) string {
	return strings.TrimRight(strings.TrimPrefix(network, "mp"), "46") + " " + address
}

func (in *inside) listen(r request) (reply, error) {
	s := &server{conns: map[net.Conn]struct{}{}}
	network, multipath := strings.CutPrefix(r.Network, "mp")
	var config net.ListenConfig
	config.SetMultipathTCP(multipath)
	var address net.Addr
	var err error
	if strings.HasPrefix(network, "udp") {
		if s.packets, err = config.ListenPacket(context.Background(), network, r.Local); err != nil {
			return reply{}, err
		}
		address = s.packets.LocalAddr()
		go s.echoDatagrams()
	} else {
		if s.listener, err = config.Listen(context.Background(), network, r.Local); err != nil {
			return reply{}, err
		}
		address = s.listener.Addr()
		go s.accept()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.servers[serverKey(r.Network, address.String())] = s
	return reply{Text: address.String()}, nil
}

func (s *server) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of files or memory for a moment
			continue
		}
		s.received.Add(1)
		go s.echo(conn)
	}
}

func (s *server) echo(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.conns[conn] = struct{}{}
	s.mu.Unlock()
	_, _ = io.Copy(conn, conn)
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
}

func (s *server) echoDatagrams() {
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := s.packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		s.received.Add(1)
		_, _ = s.packets.WriteTo(buffer[:n], from)
	}
}

func (s *server) close() error {
	if s.packets != nil {
		return s.packets.Close()
	}
	err := s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	return err
}

// conversation is a socket that talks to an echo server, one request at a time.
type conversation struct {
	mu     sync.Mutex
	stream net.Conn       // TCP and connected UDP
	packet net.PacketConn // UDP, unconnected
	remote net.Addr
	// datagrams: what is read holds one whole message.
	datagrams bool
}

// open makes a conversation. UDP sockets are connected only if that is asked for.
func open(r request, connected bool) (*conversation, error) {
	network, multipath := strings.CutPrefix(r.Network, "mp")
	datagrams := strings.HasPrefix(network, "udp")
	if datagrams && !connected {
		return openUnconnected(r, network)
	}
	if _, mapped := strings.CutSuffix(network, mappedSuffix); mapped {
		conn, err := dialMapped(network, r.Remote, r.Timeout)
		return &conversation{stream: conn, datagrams: datagrams}, err
	}
	dialer, err := dialerOf(r, network, multipath)
	if err != nil {
		return nil, err
	}
	conn, err := dialer.Dial(network, r.Remote)
	if err != nil {
		return nil, err
	}
	return &conversation{stream: conn, datagrams: datagrams}, nil
}

func openUnconnected(r request, network string) (*conversation, error) {
	network, mapped := strings.CutSuffix(network, mappedSuffix)
	remote, err := net.ResolveUDPAddr(network, r.Remote)
	if err != nil {
		return nil, err
	}
	// Without a local address the socket would be IPv6, and the remote one mapped.
	if !mapped && network == "udp" && remote.IP.To4() != nil {
		network = "udp4"
	}
	packet, err := net.ListenPacket(network, r.Local)
	if err != nil {
		return nil, err
	}
	return &conversation{packet: packet, remote: remote, datagrams: true}, nil
}

func dialerOf(r request, network string, multipath bool) (*net.Dialer, error) {
	dialer := &net.Dialer{Timeout: r.Timeout, FallbackDelay: -1}
	dialer.SetMultipathTCP(multipath)
	if r.begins != nil {
		dialer.Control = func(string, string, syscall.RawConn) error {
			r.begins()
			return nil
		}
	}
	return dialer, bindTo(dialer, network, r.Local)
}

func bindTo(dialer *net.Dialer, network, local string) (err error) {
	switch {
	case local == "":
	case strings.HasPrefix(network, "udp"):
		dialer.LocalAddr, err = net.ResolveUDPAddr(network, local)
	default:
		dialer.LocalAddr, err = net.ResolveTCPAddr(network, local)
	}
	return err
}

func (c *conversation) close() error {
	if c.packet != nil {
		return c.packet.Close()
	}
	return c.stream.Close()
}

// send sends one message.
func (c *conversation) send(message []byte) error {
	var err error
	if c.packet != nil {
		_, err = c.packet.WriteTo(message, c.remote)
	} else {
		_, err = c.stream.Write(message)
	}
	return err
}

// ask sends size random bytes and waits until they come back. Datagrams that
// answer an earlier question are passed over.
func (c *conversation) ask(size int, timeout time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(timeout)
	message := make([]byte, max(size, 1))
	for i := range message {
		message[i] = byte(rand.Uint32())
	}
	if c.packet != nil {
		_ = c.packet.SetDeadline(deadline)
	} else {
		_ = c.stream.SetDeadline(deadline)
	}
	if err := c.send(message); err != nil {
		return err
	}
	return c.expect(message)
}

func (c *conversation) expect(message []byte) error {
	if !c.datagrams {
		answer := make([]byte, len(message))
		if _, err := io.ReadFull(c.stream, answer); err != nil {
			return err
		}
		if !bytes.Equal(answer, message) {
			return errors.New("other bytes came back than were sent")
		}
		return nil
	}
	buffer := make([]byte, maxDatagram)
	for {
		n, err := c.receive(buffer)
		if err != nil {
			return err
		}
		if bytes.Equal(buffer[:n], message) {
			return nil
		}
	}
}

func (c *conversation) receive(buffer []byte) (n int, err error) {
	if c.packet == nil {
		return c.stream.Read(buffer)
	}
	n, _, err = c.packet.ReadFrom(buffer)
	return n, err
}

func dial(r request) error {
	c, err := open(r, true)
	if err != nil {
		return err
	}
	defer c.close()
	if !c.datagrams {
		return nil
	}
	return c.ask(16, r.Timeout)
}

func sendOnly(r request) error {
	c, err := open(r, false)
	if err != nil {
		return err
	}
	defer c.close()
	return c.send(make([]byte, r.Size))
}

func once(r request) error {
	c, err := open(r, false)
	if err != nil {
		return err
	}
	defer c.close()
	return c.ask(r.Size, r.Timeout)
}

func (in *inside) heldOp(r request) error {
	if r.Op == opHold {
		c, err := open(r, false)
		if err != nil {
			return err
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		if _, taken := in.held[r.Name]; taken {
			return errors.Join(fmt.Errorf("%q: %w", r.Name, os.ErrExist), c.close())
		}
		in.held[r.Name] = c
		return nil
	}
	in.mu.Lock()
	c, ok := in.held[r.Name]
	if ok && r.Op == opClose {
		delete(in.held, r.Name)
	}
	in.mu.Unlock()
	switch {
	case !ok:
		return fmt.Errorf("no connection %q", r.Name)
	case r.Op == opClose:
		return c.close()
	}
	return c.ask(r.Size, r.Timeout)
}

// loop is a Loop that runs.
type loop struct {
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex
	counts LoopCounts
}

func (in *inside) loopOp(r request) (reply, error) {
	in.mu.Lock()
	l, ok := in.loops[r.Name]
	switch {
	case r.Op == opLoop && ok:
		in.mu.Unlock()
		return reply{}, fmt.Errorf("loop %q: %w", r.Name, os.ErrExist)
	case r.Op == opLoop:
		l = &loop{stop: make(chan struct{}), done: make(chan struct{})}
		in.loops[r.Name] = l
		in.mu.Unlock()
		go l.run(*r.Loop)
		return reply{}, nil
	case ok && r.Op == opLoopStop:
		delete(in.loops, r.Name)
	}
	in.mu.Unlock()
	if !ok {
		return reply{}, fmt.Errorf("no loop %q", r.Name)
	}
	if r.Op == opLoopStop {
		close(l.stop)
		<-l.done
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := l.counts
	return reply{Counts: &counts}, nil
}

func (l *loop) run(o Loop) {
	defer close(l.done)
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	var c *conversation
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	for last := time.Now(); ; {
		select {
		case <-l.stop:
			return
		case <-time.After(o.Every):
		}
		var err error
		c, err = o.round(c, l.begin)
		now := time.Now()
		l.note(err, now.Sub(last))
		if err == nil {
			last = now
		}
	}
}

// round makes one request, over c or a new conversation, and returns what the next
// one goes over.
func (o Loop) round(c *conversation, begins func()) (*conversation, error) {
	if c == nil {
		var err error
		r := request{Network: o.Network, Local: o.Local, Remote: o.Remote, Timeout: o.Timeout, begins: begins}
		if c, err = open(r, false); err != nil {
			return nil, err
		}
	}
	err := c.ask(o.Size, o.Timeout)
	if o.Fresh || err != nil && !c.datagrams {
		c.close()
		c = nil
	}
	return c, err
}

func (l *loop) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Begun++
}

// note counts one round; gap is the time since the latest answer.
func (l *loop) note(err error, gap time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Attempts++
	if err != nil {
		l.counts.Failed++
		l.counts.LastError = err.Error()
		return
	}
	l.counts.Answered++
	l.counts.Longest = max(l.counts.Longest, gap)
}
