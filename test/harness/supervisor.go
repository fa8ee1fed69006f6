// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// A manager that exits as early as that is followed by the next one after a
// pause only, or one without an API server would be started without end.
const (
	early = 5 * time.Second
	pause = 500 * time.Millisecond
)

// Supervisor keeps one manager running: when it exits, the next one is started,
// as a kubelet would do but for its growing delays.
type Supervisor struct {
	cluster *Cluster
	extra   map[string]string
	done    chan struct{}

	mu       sync.Mutex
	managers []*Manager // the last one is running
	stopping bool
	err      error // of a start
}

// Supervise starts a manager as StartManager does, and the next one whenever it
// exits, until Stop.
func (c *Cluster) Supervise(extra map[string]string) (*Supervisor, error) {
	first, err := c.StartManager(extra)
	if err != nil {
		return nil, err
	}
	s := &Supervisor{cluster: c, extra: extra, done: make(chan struct{}), managers: []*Manager{first}}
	go func() {
		defer close(s.done)
		for s.replace() {
		}
	}()
	return s, nil
}

// replace waits until the manager exits, and starts the next.
func (s *Supervisor) replace() bool {
	began := time.Now()
	<-s.Current().Exited()
	if time.Since(began) < early {
		time.Sleep(pause)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	next, err := s.cluster.StartManager(s.extra)
	if err != nil {
		s.err = err
		return false
	}
	s.managers = append(s.managers, next)
	return true
}

// Current is the manager that was started last.
func (s *Supervisor) Current() *Manager {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.managers[len(s.managers)-1]
}

// Managers are all managers so far, in the order of their starts.
func (s *Supervisor) Managers() []*Manager {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.managers)
}

// Kill ends the current manager with SIGKILL, so that the next one follows.
func (s *Supervisor) Kill() error { return s.Current().Kill() }

// Stop ends the current manager cleanly, and starts no other. The error is that
// of the stop, or of a start that went wrong before. It may be called again.
func (s *Supervisor) Stop() error {
	s.mu.Lock()
	first := !s.stopping
	s.stopping = true
	s.mu.Unlock()
	if !first {
		return nil
	}
	current := s.Current() // the last: replace starts no other
	err := current.Stop()
	<-s.done
	return errors.Join(s.err, err)
}
