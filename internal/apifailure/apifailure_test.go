// SPDX-License-Identifier: Apache-2.0

package apifailure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestClassify(t *testing.T) {
	resource := schema.GroupResource{Resource: "configmaps"}
	for name, tc := range map[string]struct {
		err  error
		want Type
	}{
		"conflict":       {apierrors.NewConflict(resource, "a", errors.New("x")), Conflict},
		"gone":           {apierrors.NewNotFound(resource, "a"), Conflict},
		"exists":         {apierrors.NewAlreadyExists(resource, "a"), Conflict},
		"server timeout": {apierrors.NewServerTimeout(resource, "create", 1), Timeout},
		"timeout":        {apierrors.NewTimeoutError("x", 1), Timeout},
		"deadline":       {fmt.Errorf("get: %w", context.DeadlineExceeded), Timeout},
		"throttled":      {apierrors.NewTooManyRequests("x", 1), Throttled},
		"forbidden":      {apierrors.NewForbidden(resource, "a", errors.New("x")), Forbidden},
		"unauthorized":   {apierrors.NewUnauthorized("x"), Forbidden},
		"invalid":        {apierrors.NewInvalid(schema.GroupKind{Kind: "ConfigMap"}, "a", nil), Invalid},
		"bad request":    {apierrors.NewBadRequest("x"), Invalid},
		"server":         {apierrors.NewInternalError(errors.New("x")), Server},
		"unavailable":    {apierrors.NewServiceUnavailable("x"), Server},
		"refused":        {fmt.Errorf("dial: %w", syscall.ECONNREFUSED), Unreachable},
		"teapot":         {&apierrors.StatusError{ErrStatus: metav1.Status{Code: 418}}, Other},
	} {
		t.Run(name, func(t *testing.T) {
			wrapped := fmt.Errorf("doing a thing: %w", tc.err)
			if got := Classify(wrapped); got != tc.want {
				t.Errorf("Classify(%v) = %q, want %q", tc.err, got, tc.want)
			}
			if !slices.Contains(Types(), tc.want) {
				t.Errorf("%q is not in the closed list", tc.want)
			}
		})
	}
}

func TestWithin(t *testing.T) {
	cause := errors.New("took too long")
	late, cancel := context.WithTimeoutCause(context.Background(), 0, cause)
	defer cancel()
	<-late.Done()
	stopped, stop := context.WithCancel(context.Background())
	stop()
	for name, tc := range map[string]struct {
		ctx  context.Context
		err  error
		want Type
	}{
		"in time, refused":         {context.Background(), syscall.ECONNREFUSED, Unreachable},
		"late, with its own cause": {late, fmt.Errorf("get: %w", context.Cause(late)), Timeout},
		"late, but answered":       {late, apierrors.NewBadRequest("x"), Invalid},
		"stopped":                  {stopped, context.Canceled, Unreachable},
	} {
		if got := Within(tc.ctx, tc.err); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestAnswered(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"refused":       {syscall.ECONNREFUSED, false},
		"late":          {context.DeadlineExceeded, false},
		"its own error": {apierrors.NewInternalError(errors.New("x")), true},
		"its time-out":  {apierrors.NewTimeoutError("x", 1), true},
	} {
		if got := Answered(fmt.Errorf("doing a thing: %w", tc.err)); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}

func TestIsTerminating(t *testing.T) {
	terminating := apierrors.NewForbidden(schema.GroupResource{}, "a", errors.New("x"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	if !IsTerminating(fmt.Errorf("creating: %w", terminating)) {
		t.Error("a terminating namespace is not recognized")
	}
	if IsTerminating(apierrors.NewForbidden(schema.GroupResource{}, "a", errors.New("x"))) {
		t.Error("a lack of rights passes for a terminating namespace")
	}
}
