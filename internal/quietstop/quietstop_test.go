// SPDX-License-Identifier: Apache-2.0

package quietstop

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
)

func TestQuietStop(t *testing.T) {
	lost, cancelled := errors.New("leader election lost"), fmt.Errorf("reading: %w", context.Canceled)
	for name, tc := range map[string]struct {
		level    string
		err      error
		stopping bool
		want     string // level and message; empty where nothing is logged
	}{
		"a clean stop":                {"info", lost, true, ""},
		"a clean stop, debugged":      {"debug", lost, true, "I it ended"},
		"before a stop":               {"info", lost, false, "E it ended"},
		"a cancelled call":            {"info", cancelled, true, ""},
		"a cancelled call, debugged":  {"debug", cancelled, true, "I it ended"},
		"cancelled without a stop":    {"info", cancelled, false, "E it ended"},
		"another error":               {"info", errors.New("it broke"), true, "E it ended"},
		"a time-out":                  {"info", context.DeadlineExceeded, true, "E it ended"},
		"no error at all":             {"info", nil, true, "E it ended"},
		"errors only, during a stop":  {"error", lost, true, ""},
		"errors only, without a stop": {"error", lost, false, "E it ended"},
	} {
		t.Run(name, func(t *testing.T) {
			out := &strings.Builder{}
			logger, err := logging.New(out, tc.level, false)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logger))
			defer cancel()
			if tc.stopping {
				cancel()
			}
			Logger(ctx).WithName("a").WithValues("k", "v").Error(tc.err, "it ended", "k2", "v2")
			got := regexp.MustCompile(`(?s)^([IE]).* quietstop_test\.go:\d+\] "(a: )?(.*?)".*`).ReplaceAllString(out.String(), "$1 $3")
			if got != tc.want {
				t.Errorf("logged %q (%q), want %q", got, out.String(), tc.want)
			}
		})
	}
}

// TestQuietStopIsForErrors: other messages pass, whatever they carry.
func TestQuietStopIsForErrors(t *testing.T) {
	out := &strings.Builder{}
	logger, err := logging.New(out, "info", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logger))
	cancel()
	Logger(ctx).Info("note", "err", context.Canceled)
	logging.Warning(Logger(ctx), "hidden", "err", context.Canceled)
	logging.Warning(Logger(ctx), "shown", "err", context.DeadlineExceeded)
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, `"note"`) || !strings.Contains(got, `"shown"`) {
		t.Errorf("logged %q", got)
	}
}
