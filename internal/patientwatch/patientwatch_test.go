// SPDX-License-Identifier: Apache-2.0

package patientwatch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// broken is an API server that fails a number of times.
type broken struct {
	failures int
	status   int // 0: no answer at all
	asked    int
}

func (b *broken) RoundTrip(*http.Request) (*http.Response, error) {
	b.asked++
	switch {
	case b.asked > b.failures:
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("ok"))}, nil
	case b.status == 0:
		return nil, errors.New("connection refused")
	default:
		return &http.Response{StatusCode: b.status, Body: io.NopCloser(strings.NewReader("no"))}, nil
	}
}

func TestPatientWatches(t *testing.T) {
	const watch = "https://api/api/v1/pods?watch=true"
	for name, tc := range map[string]struct {
		url     string
		server  broken
		asked   int
		status  int // of the answer; 0: none
		atLeast time.Duration
		atMost  time.Duration
	}{
		"a watch that is answered":        {watch, broken{}, 1, http.StatusOK, 0, 0},
		"a watch without an answer":       {watch, broken{failures: 20}, 21, http.StatusOK, 30 * time.Second, 60 * time.Second},
		"a watch that a proxy answers":    {watch, broken{failures: 3, status: http.StatusBadGateway}, 4, http.StatusOK, time.Second, 6 * time.Second},
		"a list before a watch":           {"https://api/api/v1/pods?limit=5000", broken{failures: 20}, 21, http.StatusOK, 30 * time.Second, 60 * time.Second},
		"a watch that is refused":         {watch, broken{failures: 3, status: http.StatusForbidden}, 1, http.StatusForbidden, 0, 0},
		"a watch that came too late":      {watch, broken{failures: 3, status: http.StatusGone}, 1, http.StatusGone, 0, 0},
		"another call without an answer":  {"https://api/api/v1/pods/a", broken{failures: 3}, 1, 0, 0, 0},
		"another call that a proxy fails": {"https://api/api/v1/pods/a", broken{failures: 3, status: http.StatusBadGateway}, 1, http.StatusBadGateway, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := tc.server
				began := time.Now()
				response, err := New(&server).RoundTrip(request(t.Context(), t, tc.url))
				took := time.Since(began)
				if server.asked != tc.asked || took < tc.atLeast || took > tc.atMost {
					t.Errorf("asked %d times in %v, want %d in %v to %v", server.asked, took, tc.asked, tc.atLeast, tc.atMost)
				}
				switch {
				case tc.status == 0 && err == nil:
					t.Error("no error")
				case tc.status > 0 && (err != nil || response.StatusCode != tc.status):
					t.Errorf("got %v, %v, want status %d", response, err, tc.status)
				}
			})
		})
	}
}

func TestPatientWatchesEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		_, err := New(&broken{failures: 1000}).RoundTrip(request(ctx, t, "https://api/api/v1/pods?watch=true"))
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != 10*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

func request(ctx context.Context, t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
