// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// orphanGrace is how long Kubernetes' garbage collector has to remove the
// ConfigMaps of a pod that is gone, before the operator does.
const orphanGrace = 30 * time.Second

// departed remembers since when pods are gone, until their leftovers are swept.
type departed struct {
	mu    sync.Mutex
	now   func() time.Time
	grace time.Duration
	since map[types.NamespacedName]time.Time
}

func newDeparted(now func() time.Time) *departed {
	return &departed{now: now, grace: orphanGrace, since: map[types.NamespacedName]time.Time{}}
}

// graceLeft tells how long a pod's leftovers are still left alone. The grace
// begins when the pod is first found gone.
func (d *departed) graceLeft(pod types.NamespacedName) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	since, known := d.since[pod]
	if !known {
		since = d.now()
		d.since[pod] = since
	}
	return max(0, d.grace-d.now().Sub(since))
}

// returned forgets a pod: it is back, or swept.
func (d *departed) returned(pod types.NamespacedName) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.since, pod)
}
