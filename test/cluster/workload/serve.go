// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// server is one process's listeners and what it was asked to do.
type server struct {
	name string

	mu       sync.Mutex
	received map[string]int // by network and port, such as tcp/8080
	loops    map[string]*loop
}

// serve listens on IPv4 and IPv6. Whoever greets it is told its host name, which is
// the pod's.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	tcp := flags.String("tcp", "", "ports for TCP, with commas between")
	udp := flags.String("udp", "", "ports for UDP, with commas between")
	first := flags.String("calls", "", "NUMBERxCOUNT: system calls to make before anything else")
	control := flags.Int("control", 0, "port of an HTTP server that tells what was received, and dials when asked to; 0: none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *first != "" {
		if _, err := calls(strings.Split(*first, "x")); err != nil {
			return err
		}
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &server{name: name, received: map[string]int{}, loops: map[string]*loop{}}
	for _, port := range ports(*tcp) {
		if err := s.listenTCP(port); err != nil {
			return err
		}
	}
	for _, port := range ports(*udp) {
		if err := s.listenUDP(port); err != nil {
			return err
		}
	}
	if *control != 0 {
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(*control))
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(listener, s.handler()) }() // until the process ends
	}
	fmt.Println("serving")
	return wait(nil)
}

func ports(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func (s *server) listenTCP(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.count("tcp/" + port)
			go s.answer(conn)
		}
	}()
	return nil
}

func (s *server) answer(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Fprintln(conn, s.name); err != nil {
			return
		}
	}
}

func (s *server) listenUDP(port string) error {
	conn, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		datagram := make([]byte, 2048)
		for {
			_, from, err := conn.ReadFrom(datagram)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // of an answer that could not be sent
			}
			s.count("udp/" + port)
			_, _ = conn.WriteTo([]byte(s.name+"\n"), from)
		}
	}()
	return nil
}

func (s *server) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received[what]++
}

// handler answers with JSON:
//
//	/healthz                                       ok
//	/received                                      connections and datagrams so far
//	/dial?network=&address=&timeout=&count=        tries an address
//	/loop?id=&network=&address=&timeout=&every=    begins to try it again and again
//	/loop/count?id=                                what came of that so far
//	/loop/stop?id=                                 ends it, and tells what came of it in all
//	/loops                                         what came of all loops so far, by id
//	/calls?number=&count=                          makes system calls
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	for path, serve := range map[string]func(url.Values) (any, error){
		"/received": s.serveReceived, "/dial": s.serveDial, "/loop": s.serveLoop, "/loop/count": s.serveLoopCount,
		"/loop/stop": s.serveLoopStop, "/loops": s.serveLoops, "/calls": s.serveCalls,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			answer, err := serve(r.URL.Query())
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	return mux
}

func (s *server) serveReceived(url.Values) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int{}
	for what, n := range s.received {
		all[what] = n
	}
	return all, nil
}

func (s *server) serveDial(q url.Values) (any, error) {
	limit, err := time.ParseDuration(q.Get("timeout"))
	if err != nil {
		return nil, err
	}
	count := 1
	if text := q.Get("count"); text != "" {
		if count, err = strconv.Atoi(text); err != nil {
			return nil, err
		}
	}
	t := tries{Address: q.Get("address")}
	for range count {
		t.add(try(q.Get("network"), q.Get("address"), limit))
	}
	return t, nil
}

func (s *server) serveLoop(q url.Values) (any, error) {
	limit, err := time.ParseDuration(q.Get("timeout"))
	if err != nil {
		return nil, err
	}
	every, err := time.ParseDuration(q.Get("every"))
	if err != nil || every <= 0 {
		return nil, fmt.Errorf("every is %q: give a duration", q.Get("every"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := q.Get("id")
	if s.loops[id] != nil {
		return nil, fmt.Errorf("there is a loop %q already", id)
	}
	s.loops[id] = startLoop(q.Get("network"), q.Get("address"), every, limit)
	return "begun", nil
}

func (s *server) loop(id string) (*loop, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.loops[id]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("there is no loop %q", id)
}

func (s *server) serveLoopCount(q url.Values) (any, error) {
	l, err := s.loop(q.Get("id"))
	if err != nil {
		return nil, err
	}
	return l.count(), nil
}

func (s *server) serveLoops(url.Values) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]tries{}
	for id, l := range s.loops {
		all[id] = l.count()
	}
	return all, nil
}

func (s *server) serveLoopStop(q url.Values) (any, error) {
	id := q.Get("id")
	s.mu.Lock()
	l := s.loops[id]
	delete(s.loops, id)
	s.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("there is no loop %q", id)
	}
	return l.end(), nil
}

func (s *server) serveCalls(q url.Values) (any, error) {
	made, err := calls([]string{q.Get("number"), q.Get("count")})
	return made, err
}
