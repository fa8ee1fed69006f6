// SPDX-License-Identifier: Apache-2.0

// Package patientwatch makes watches outlast an API server that is away.
package patientwatch

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"

	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
)

// patientWatches holds back the failure of a watch, or of the list before it, until
// the API server answers again, and asks every few seconds. Without it, informers wait
// up to a minute between two tries after an outage of half a minute, and offer no way
// to change that (client-go's reflector). Everything else fails at once.
type patientWatches struct {
	next  http.RoundTripper
	first time.Duration // between tries; it doubles twice
}

// New wraps a transport.
func New(next http.RoundTripper) http.RoundTripper {
	return &patientWatches{next: next, first: 500 * time.Millisecond}
}

// RoundTrip is part of http.RoundTripper.
func (p *patientWatches) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := p.next.RoundTrip(r)
	if !isInformers(r) || answered(response, err) {
		return response, err
	}
	began, logger := time.Now(), klog.FromContext(r.Context())
	logging.Warning(logger, "The API server does not answer a watch or its list; asking until it does", "path", r.URL.Path, "err", reason(response, err))
	delay := wait.Backoff{Duration: p.first, Factor: 2, Steps: 2, Jitter: 0.2}.DelayFunc()
	for !answered(response, err) {
		if err == nil {
			err = response.Body.Close() // a fresh answer will do, whatever this is
		}
		select {
		case <-r.Context().Done():
			return nil, errors.Join(r.Context().Err(), err)
		case <-time.After(delay()):
		}
		response, err = p.next.RoundTrip(r)
	}
	logger.Info("The API server answers again", "path", r.URL.Path, "after", time.Since(began).Round(time.Millisecond))
	return response, nil
}

// isInformers tells whether a request is a watch, or one of the lists in pages that
// come before a watch.
func isInformers(r *http.Request) bool {
	query := r.URL.Query()
	return r.Method == http.MethodGet && (query.Has("watch") || query.Has("limit"))
}

// answered tells whether the API server itself, and not a proxy before it, has
// answered.
func answered(response *http.Response, err error) bool {
	if err != nil {
		return false
	}
	switch response.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false
	default:
		return true
	}
}

func reason(response *http.Response, err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("status %s", response.Status)
}
