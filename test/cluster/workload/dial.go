// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What came of a try to reach an address.
const (
	reached  = "reached"
	denied   = "denied"  // EPERM: the firewall said so at once
	refused  = "refused" // nobody listens
	silent   = "silent"  // no answer in time
	impeded  = "impeded" // any other error
	greeting = "hello\n"
)

// tries counts what came of several.
type tries struct {
	Address string         `json:"address"`
	Results map[string]int `json:"results"`
	// First and Last are the answer, or the error, of the first and last try.
	First string `json:"first"`
	Last  string `json:"last"`
	// Missed is, for each result but reached, the last error, with its time.
	Missed map[string]string `json:"missed,omitempty"`
}

func (t *tries) add(result, told string) {
	if t.Results == nil {
		t.Results, t.Missed = map[string]int{}, map[string]string{}
		t.First = told
	}
	if result != reached {
		t.Missed[result] = time.Now().UTC().Format("15:04:05.000 ") + told
	}
	t.Results[result]++
	t.Last = told
}

// dial tries each address some times, all addresses at once.
func dial(args []string) error {
	flags := flag.NewFlagSet("dial", flag.ContinueOnError)
	network := flags.String("network", "tcp", "tcp or udp")
	count := flags.Int("count", 1, "how often to try each address")
	limit := flags.Duration("timeout", time.Second, "how long one try may take")
	pause := flags.Duration("pause", 0, "between two tries")
	if err := flags.Parse(args); err != nil {
		return err
	}
	all := make([]tries, flags.NArg())
	var wait sync.WaitGroup
	for i, address := range flags.Args() {
		all[i].Address = address
		wait.Go(func() {
			for range *count {
				all[i].add(try(*network, address, *limit))
				time.Sleep(*pause)
			}
		})
	}
	wait.Wait()
	return tell(all)
}

// try greets a server and waits for its answer.
func try(network, address string, limit time.Duration) (result, told string) {
	answer, err := greet(network, address, limit)
	if err != nil {
		return kindOf(err), err.Error()
	}
	return reached, answer
}

func greet(network, address string, limit time.Duration) (string, error) {
	conn, err := net.DialTimeout(network, address, limit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(greeting)); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("reading the answer of %s: %w", address, err)
	}
	return strings.TrimSpace(answer), nil
}

func kindOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.EPERM):
		return denied
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.As(err, &timeout) && timeout.Timeout():
		return silent
	}
	return impeded
}

// loop tries an address again and again.
type loop struct {
	mu    sync.Mutex
	tries tries
	stop  chan struct{}
	ended chan struct{}
}

func startLoop(network, address string, every, limit time.Duration) *loop {
	l := &loop{tries: tries{Address: address}, stop: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			result, told := try(network, address, limit)
			l.mu.Lock()
			l.tries.add(result, told)
			l.mu.Unlock()
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
		}
	}()
	return l
}

func (l *loop) count() tries {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tries
	t.Results, t.Missed = maps.Clone(t.Results), maps.Clone(t.Missed)
	return t
}

// end waits for the try that is under way; then the counts are final.
func (l *loop) end() tries {
	close(l.stop)
	<-l.ended
	return l.count()
}
