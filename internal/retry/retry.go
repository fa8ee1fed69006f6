// SPDX-License-Identifier: Apache-2.0

// Package retry decides when work that failed is tried again: with exponential
// backoff, until it failed too often in a row; then at the resync period only.
package retry

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
)

const (
	// afterConflict is how long the first retry after a conflict waits, where a
	// fresh look is all that is needed. Each further retry waits twice as long.
	afterConflict = 50 * time.Millisecond
	// slower is how many times longer other failures wait: five tries bridge
	// more than seven seconds of an API server that answers with errors.
	slower = 10
	// unanswered bounds the wait while the API server does not answer: the crowd
	// should be back soon after it is.
	unanswered = 5 * time.Second
)

// Backoff counts the failures of each object, in a row. It is safe for
// concurrent use.
type Backoff struct {
	most        int
	resync      time.Duration
	failures    workqueue.TypedRateLimiter[types.NamespacedName]
	unreachable workqueue.TypedRateLimiter[types.NamespacedName]
}

// New returns a Backoff that gives up, until the resync, after so many failures.
func New(most int, resync time.Duration) *Backoff {
	return &Backoff{
		most: most, resync: resync,
		failures:    workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](afterConflict, resync),
		unreachable: workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](slower*afterConflict, unanswered),
	}
}

// Most is how many failures in a row are one too many.
func (b *Backoff) Most() int { return b.most }

// Failed counts a failure, and tells when to try again and whether that was one
// too many. An API server that does not answer says nothing about the object:
// that is not counted, and tried again until it does.
func (b *Backoff) Failed(object types.NamespacedName, err error) (wait time.Duration, exhausted bool) {
	if !apifailure.Answered(err) {
		return min(b.unreachable.When(object), b.resync), false
	}
	b.unreachable.Forget(object)
	return b.count(object, apifailure.Classify(err) == apifailure.Conflict)
}

// Refused counts a failure that is no call's to the API server, such as the
// kernel's; it tells the same as Failed.
func (b *Backoff) Refused(object types.NamespacedName) (wait time.Duration, exhausted bool) {
	return b.count(object, false)
}

func (b *Backoff) count(object types.NamespacedName, soon bool) (wait time.Duration, exhausted bool) {
	wait = b.failures.When(object)
	if !soon {
		wait *= slower
	}
	if b.failures.NumRequeues(object) >= b.most {
		return b.resync, true
	}
	return min(wait, b.resync), false
}

// Succeeded forgets the failures of an object, be it that it is gone.
func (b *Backoff) Succeeded(object types.NamespacedName) {
	b.failures.Forget(object)
	b.unreachable.Forget(object)
}
