// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"maps"
	"sync"
	"time"
)

// State is how the agents' DaemonSets are.
type State struct {
	// Known is false until the leader has looked for the first time.
	Known bool
	// Refused says that, and why, admission keeps agents out, and what helps.
	Refused string
	// Problem says why the leader cannot deploy agents, and what helps.
	Problem string
	// Busy says what is under way that an upgrade of the operator would disturb;
	// it counts until BusyUntil.
	Busy      string
	BusyUntil time.Time
	// Silent are the nodes whose agent is not ready, and since when.
	Silent map[string]time.Time
}

// equal compares all of it.
func (s *State) equal(other *State) bool {
	return s.Known == other.Known && s.Refused == other.Refused && s.Problem == other.Problem &&
		s.Busy == other.Busy && s.BusyUntil.Equal(other.BusyUntil) && maps.EqualFunc(s.Silent, other.Silent, time.Time.Equal)
}

// Board shows the State to whoever reports it. Its methods may be called from
// several goroutines.
type Board struct {
	mu        sync.Mutex
	state     State
	listeners []func()
}

// State is the last one that was set. Its map is not to be changed.
func (b *Board) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Set shows a State, and tells of it where it is another.
func (b *Board) Set(s State) {
	s.Known = true
	b.mu.Lock()
	changed, listeners := !b.state.equal(&s), b.listeners
	b.state = s
	b.mu.Unlock()
	if !changed {
		return
	}
	for _, tell := range listeners {
		tell()
	}
}

// OnChange registers a function that is called after each change. It must not
// block.
func (b *Board) OnChange(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listeners = append(b.listeners, f)
}
