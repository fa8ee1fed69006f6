// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

var errInterrupted = errors.New("interrupted")

// session is one run: what is at work, and how to take it away.
type session struct {
	*options
	*console
	settings *settings.Settings // the user's
	client   client.Client
	manager  *manager
	followed string // namespace whose changes show while the session stays
	// undo holds what takes away what was made, in the order of making.
	undo []undo
}

type undo struct {
	what string // such as "stopping the manager"
	do   func(context.Context) error
}

// run runs the operator until the context ends or, with once, the tour does.
func run(ctx context.Context, o *options, c *console) (err error) {
	s := &session{options: o, console: c}
	if s.settings, err = settings.Load(); err != nil {
		return err
	}
	defer func() {
		// Cleaning up after an interrupt needs a context of its own.
		err = errors.Join(err, s.cleanUp(context.WithoutCancel(ctx)))
	}()
	tour := s.local
	if o.kubeconfig != "" {
		tour = s.remote
	}
	switch err := tour(ctx); {
	case ctx.Err() != nil:
		return errInterrupted
	case err != nil:
		return err
	case o.once:
		return nil
	}
	return s.stay(ctx)
}

// stay waits for Ctrl-C, which is a fine end, or for the manager's end, which is
// not.
func (s *session) stay(ctx context.Context) error {
	s.say("Ctrl-C stops everything, and cleans up.")
	following, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	defer func() { stop(); <-ended }()
	go func() {
		defer close(ended)
		if s.followed != "" {
			s.follow(following, s.followed)
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-s.manager.exited:
		return s.manager.failure()
	}
}

func (s *session) later(what string, do func(context.Context) error) {
	s.undo = append(s.undo, undo{what, do})
}

// cleanUp undoes everything, last things first; a failure does not keep it from
// the rest.
func (s *session) cleanUp(ctx context.Context) error {
	if len(s.undo) == 0 {
		return nil
	}
	s.step("Cleaning up (another Ctrl-C stops at once, and leaves the rest)")
	var failures []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		ctx, cancel := context.WithTimeout(ctx, s.patience)
		s.say("%s", s.undo[i].what)
		if err := s.undo[i].do(ctx); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", s.undo[i].what, err))
		}
		cancel()
	}
	return errors.Join(failures...)
}

// await asks until the answer is yes, and tells how long that took. It gives up
// when patience or the manager ends, or the answer is yes with an error.
func (s *session) await(ctx context.Context, what string, ask func(context.Context) (bool, error)) (time.Duration, error) {
	if s.manager == nil {
		return s.awaitAlone(ctx, what, ask)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.manager.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	took, err := s.awaitAlone(ctx, what, ask)
	if err == nil {
		return took, nil
	}
	select {
	case <-s.manager.exited:
		return 0, s.manager.failure()
	default:
	}
	if ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
		return 0, err
	}
	return 0, fmt.Errorf("%w\nthe manager's log (%s) ends with:\n%s", err, s.log, s.manager.logTail())
}

// awaitAlone is await for when it does not matter whether a manager runs.
func (s *session) awaitAlone(ctx context.Context, what string, ask func(context.Context) (bool, error)) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	for {
		yes, err := ask(ctx)
		if yes {
			return time.Since(began), err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting until %s, for %s: %w", what, seconds(time.Since(began)), errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
