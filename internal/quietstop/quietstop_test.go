// SPDX-License-Identifier: Apache-2.0

package quietstop

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
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

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// client-go logs an answer that breaks off as an error, with the global logger, even where
// the stop of the process broke it off.
func TestAnswerThatTheStopBreaksOff(t *testing.T) {
	for name, tc := range map[string]struct {
		stopped bool // with the process, or by the caller alone
		want    bool // whether it is logged
	}{"a clean stop": {true, false}, "without a stop": {false, true}} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprint(w, `{"kind":"PodList"`)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}))
			defer server.Close()
			out := &strings.Builder{}
			logger, err := logging.New(out, "info", false)
			if err != nil {
				t.Fatal(err)
			}
			process, stop := context.WithCancel(klog.NewContext(context.Background(), logger))
			defer stop()
			if err := logging.Install(Logger(process), "info"); err != nil {
				t.Fatal(err)
			}
			defer klog.ClearLogger()
			call, cancel := context.WithCancel(context.Background())
			defer cancel()
			answered := func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(request *http.Request) (*http.Response, error) {
					response, err := next.RoundTrip(request)
					if tc.stopped {
						stop()
					}
					cancel()
					return response, err
				})
			}
			client, err := corev1.NewForConfig(&rest.Config{Host: server.URL, WrapTransport: answered})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Pods("").List(call, metav1.ListOptions{}); !errors.Is(err, context.Canceled) {
				t.Errorf("the call ended with %v", err)
			}
			if got := strings.Contains(out.String(), "Unexpected error when reading response body"); got != tc.want {
				t.Errorf("logged %q, want the error: %v", out.String(), tc.want)
			}
		})
	}
}
