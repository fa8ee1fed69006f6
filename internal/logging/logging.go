// SPDX-License-Identifier: Apache-2.0

// Package logging sets up the operator's structured logs: klog key-value pairs,
// as klog text or as JSON, at the levels error, warning, info and debug.
package logging

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Debug is the verbosity of debug messages: klog.FromContext(ctx).V(logging.Debug).
const Debug = 4

var levels = map[string]slog.Level{
	"error":   slog.LevelError,
	"warning": slog.LevelWarn,
	"info":    slog.LevelInfo,
	"debug":   slog.Level(-Debug),
}

// New returns a logger that writes messages of the level (error, warning, info
// or debug) and above to w.
func New(w io.Writer, level string, json bool) (logr.Logger, error) {
	least, ok := levels[level]
	if !ok {
		return logr.Discard(), fmt.Errorf("log level %q: use error, warning, info or debug", level)
	}
	if json {
		return logr.FromSlogHandler(slog.NewJSONHandler(w, &slog.HandlerOptions{
			AddSource: true, Level: least, ReplaceAttr: readable,
		})), nil
	}
	text := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(w), textlogger.Verbosity(Debug)))
	return logr.FromSlogHandler(leveled{Handler: logr.ToSlogHandler(text), least: least}), nil
}

// Install makes the logger that of klog and of controller-runtime.
func Install(logger logr.Logger, level string) error {
	klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))
	ctrllog.SetLogger(logger)
	if level != "debug" {
		return nil
	}
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", fmt.Sprint(Debug)); err != nil {
		return fmt.Errorf("setting klog's verbosity: %w", err)
	}
	return nil
}

// Warning logs what needs attention but is being handled. logr knows no warning
// of its own; slog, which carries our logs, and klog's text format do.
func Warning(logger logr.Logger, msg string, keysAndValues ...any) {
	ctx, handler := context.Background(), logr.ToSlogHandler(logger)
	if !handler.Enabled(ctx, slog.LevelWarn) {
		return
	}
	var caller [1]uintptr
	runtime.Callers(2, caller[:])
	record := slog.NewRecord(time.Now(), slog.LevelWarn, msg, caller[0])
	record.Add(keysAndValues...)
	_ = handler.Handle(ctx, record) // a log that cannot be written cannot be reported
}

// readable names levels as the settings do: debug messages have levels below
// slog's own names.
func readable(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.LevelKey:
		level, _ := a.Value.Any().(slog.Level)
		return slog.String(slog.LevelKey, levelName(level))
	case slog.SourceKey:
		source, ok := a.Value.Any().(*slog.Source)
		if !ok || source.File == "" {
			return slog.Attr{}
		}
		return slog.String("caller", fmt.Sprintf("%s:%d", shortFile(source.File), source.Line))
	}
	return a
}

func levelName(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "error"
	case level >= slog.LevelWarn:
		return "warning"
	case level >= slog.LevelInfo:
		return "info"
	default:
		return "debug"
	}
}

// shortFile keeps the folder and the file name.
func shortFile(path string) string {
	slashes := 0
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			if slashes++; slashes == 2 {
				return path[i+1:]
			}
		}
	}
	return path
}

// leveled drops what is below its least level; klog's text logger filters
// verbosity only.
type leveled struct {
	slog.Handler
	least slog.Level
}

func (l leveled) Enabled(_ context.Context, level slog.Level) bool { return level >= l.least }

func (l leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return leveled{Handler: l.Handler.WithAttrs(attrs), least: l.least}
}

func (l leveled) WithGroup(name string) slog.Handler {
	return leveled{Handler: l.Handler.WithGroup(name), least: l.least}
}
