// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
)

const (
	// firstRetry is how long the first retry of a pod waits; each further one
	// waits twice as long.
	firstRetry = 100 * time.Millisecond
	// unreachableRetry bounds the wait while the API server does not answer: the
	// crowd should be back soon after it is.
	unreachableRetry = 5 * time.Second
	// firstConflictLook is when a name that is taken by a foreign ConfigMap is
	// looked at again at first; the waits double up to the resync period.
	firstConflictLook = time.Second
)

// retries decides when a pod is tried again.
type retries struct {
	max         int
	resync      time.Duration
	failures    workqueue.TypedRateLimiter[types.NamespacedName]
	unreachable workqueue.TypedRateLimiter[types.NamespacedName]
}

func newRetries(limit int, resync time.Duration) *retries {
	return &retries{
		max: limit, resync: resync,
		failures:    workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](firstRetry, resync),
		unreachable: workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](firstRetry, unreachableRetry),
	}
}

// failed counts a failure, and tells when to try again and whether that was one
// too many: then, only the resync period is left.
func (r *retries) failed(pod types.NamespacedName, why apifailure.Type) (wait time.Duration, exhausted bool) {
	if !why.SaysSomething() {
		return r.unreachable.When(pod), false
	}
	r.unreachable.Forget(pod)
	wait = r.failures.When(pod)
	if r.failures.NumRequeues(pod) >= r.max {
		return r.resync, true
	}
	return min(wait, r.resync), false
}

func (r *retries) succeeded(pod types.NamespacedName) {
	r.failures.Forget(pod)
	r.unreachable.Forget(pod)
}

// holds remembers which names were found taken by a foreign ConfigMap that the
// caches do not show, so that only time, not each event of the pod, makes the
// operator ask again.
type holds struct {
	mu      sync.Mutex
	now     func() time.Time
	backoff workqueue.TypedRateLimiter[holdKey]
	until   map[holdKey]time.Time
}

type holdKey struct {
	pod  types.NamespacedName
	name string // of the ConfigMap
}

func newHolds(resync time.Duration, now func() time.Time) *holds {
	return &holds{
		now: now, until: map[holdKey]time.Time{},
		backoff: workqueue.NewTypedItemExponentialFailureRateLimiter[holdKey](min(firstConflictLook, resync), resync),
	}
}

// left tells how long the name must not be asked for; zero means that it may.
func (h *holds) left(key holdKey) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(0, h.until[key].Sub(h.now()))
}

// hold begins the next, longer wait.
func (h *holds) hold(key holdKey) time.Duration {
	wait := h.backoff.When(key)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until[key] = h.now().Add(wait)
	return wait
}

// release forgets a name that the pod no longer waits for.
func (h *holds) release(key holdKey) {
	h.backoff.Forget(key)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.until, key)
}
