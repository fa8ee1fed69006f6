// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/caarlos0/env/v11"
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
	programs []*program // that were started, in that order
	alive    context.Context
	over     context.CancelCauseFunc // ends alive: a program has ended
	kubelet  *kubelet
	nodeName string // of the sample's pods
	// Of the eBPF part, on a control plane of its own.
	real            *machinery
	agentKubeconfig string
	// With a real node.
	cluster *realNode
	// Of the eBPF part.
	agentMetrics agentMetrics
	scene        *scene
	followed     string // namespace whose changes show while the session stays
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
	if s.settings, err = settings.Parse(environment()); err != nil {
		return err
	}
	s.alive, s.over = context.WithCancelCause(context.WithoutCancel(ctx))
	defer s.over(nil)
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

// environment is the user's. The eBPF subsystem has to know the operator's
// namespace, which a pod knows by itself.
func environment() map[string]string {
	environ := env.ToMap(os.Environ())
	if on, err := strconv.ParseBool(environ["EBPF_ENABLED"]); err == nil && on && environ["POD_NAMESPACE"] == "" {
		environ["POD_NAMESPACE"] = operatorNamespace
	}
	return environ
}

// stay waits for Ctrl-C, which is a fine end, or for a program's end, which is
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
	case <-s.alive.Done():
		return context.Cause(s.alive)
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
// when patience or a program ends, or the answer is yes with an error.
func (s *session) await(ctx context.Context, what string, ask func(context.Context) (bool, error)) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.alive, cancel)()
	took, err := s.awaitAlone(ctx, what, ask)
	switch {
	case err == nil:
		return took, nil
	case s.alive.Err() != nil:
		return 0, context.Cause(s.alive)
	case ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded):
		return 0, err
	}
	for _, p := range s.programs {
		err = fmt.Errorf("%w\n%s", err, p.logTail())
	}
	if s.cluster != nil {
		err = fmt.Errorf("%w\n%s", err, s.cluster.podLogs(ctx))
	}
	return 0, err
}

// awaitAlone is await for when it does not matter whether programs run.
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
