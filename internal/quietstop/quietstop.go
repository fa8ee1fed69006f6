// SPDX-License-Identifier: Apache-2.0

// Package quietstop keeps a clean stop out of the log of errors.
package quietstop

import (
	"context"
	"errors"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
)

// quietStop is a log handler for us and for the libraries. After a clean stop has
// begun, errors that say no more than that are debug messages: calls that were
// cancelled, and the end of leading. A Lease that is lost before that makes Run
// fail, and so is told.
type quietStop struct {
	slog.Handler
	stopping func() bool
}

// leadershipLost is the error of controller-runtime's pkg/manager/internal.go,
// which has no type.
const leadershipLost = "leader election lost"

// Logger returns the context's logger, quiet once the context has ended. The libraries
// ask for a logger in their own ways: it has to be the global one, too.
func Logger(ctx context.Context) logr.Logger {
	return logr.FromSlogHandler(quietStop{
		Handler:  logr.ToSlogHandler(klog.FromContext(ctx)),
		stopping: func() bool { return ctx.Err() != nil },
	})
}

// Handle is part of slog.Handler.
func (q quietStop) Handle(ctx context.Context, record slog.Record) error {
	if record.Level < slog.LevelWarn || !q.stopping() || !saysStop(record) {
		return q.Handler.Handle(ctx, record)
	}
	if record.Level = slog.Level(-logging.Debug); !q.Enabled(ctx, record.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, record)
}

func saysStop(record slog.Record) (says bool) {
	record.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		says = ok && (errors.Is(err, context.Canceled) || err.Error() == leadershipLost)
		return !says
	})
	return says
}

// WithAttrs is part of slog.Handler.
func (q quietStop) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietStop{q.Handler.WithAttrs(attrs), q.stopping}
}

// WithGroup is part of slog.Handler.
func (q quietStop) WithGroup(name string) slog.Handler {
	return quietStop{q.Handler.WithGroup(name), q.stopping}
}
