// SPDX-License-Identifier: Apache-2.0

// Package apifailure sorts the errors of API calls into a short closed list.
package apifailure

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Type is what went wrong: fit for a metric's label. docs/metrics.md lists them.
type Type string

// What can go wrong; Meaning says what each is. The last three are found before
// any call is made.
const (
	Conflict    Type = "conflict"
	Unreachable Type = "unreachable"
	Timeout     Type = "timeout"
	Throttled   Type = "throttled"
	Forbidden   Type = "forbidden"
	Invalid     Type = "invalid"
	Server      Type = "server"
	Other       Type = "other"

	Template     Type = "template"
	TooLarge     Type = "too_large"
	NameConflict Type = "name_conflict"
)

var meanings = map[Type]string{
	Conflict:     "the object changed meanwhile; a fresh look helps",
	Unreachable:  "no answer from the API server",
	Timeout:      "no answer in time",
	Throttled:    "the API server asked for patience",
	Forbidden:    "a right is missing, or a quota is used up",
	Invalid:      "the API server refuses the object",
	Server:       "the API server's own error",
	Other:        "none of these",
	Template:     "a template does not parse or fails for the pod",
	TooLarge:     "the data exceed what a ConfigMap may hold",
	NameConflict: "the ConfigMap's name is taken",
}

// Meaning says in a few words what the type is.
func (t Type) Meaning() string { return meanings[t] }

// Types lists every Type.
func Types() []Type {
	return []Type{Conflict, Unreachable, Timeout, Throttled, Forbidden, Invalid, Server, Template, TooLarge, NameConflict, Other}
}

// Classify names the type of an API call's error.
func Classify(err error) Type {
	for _, c := range []struct {
		is  func(error) bool
		why Type
	}{
		{apierrors.IsConflict, Conflict},
		{apierrors.IsNotFound, Conflict},
		{apierrors.IsAlreadyExists, Conflict},
		{apierrors.IsTimeout, Timeout},
		{apierrors.IsServerTimeout, Timeout},
		{isDeadline, Timeout},
		{apierrors.IsTooManyRequests, Throttled},
		{apierrors.IsForbidden, Forbidden},
		{apierrors.IsUnauthorized, Forbidden},
		{apierrors.IsInvalid, Invalid},
		{apierrors.IsBadRequest, Invalid},
		{isServerError, Server},
		{isNoAnswer, Unreachable},
	} {
		if c.is(err) {
			return c.why
		}
	}
	return Other
}

// Within is Classify for a call that had to end with the context. Who sets its
// deadline may give a cause of his own, which then is all that the error says.
func Within(ctx context.Context, err error) Type {
	why := Classify(err)
	if why == Unreachable && isDeadline(ctx.Err()) {
		return Timeout
	}
	return why
}

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

func isServerError(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code >= 500
}

func isNoAnswer(err error) bool { return !Answered(err) }

// IsTerminating tells that the namespace is going or gone: there is nothing
// left to do in it.
func IsTerminating(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// Answered tells whether the API server has answered, be it with an error. One
// that has not says nothing about the object.
func Answered(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}
