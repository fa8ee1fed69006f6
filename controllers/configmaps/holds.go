// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
)

// firstConflictLook is when a name that is taken by a foreign ConfigMap is
// looked at again at first; the waits double up to the resync period.
const firstConflictLook = time.Second

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
