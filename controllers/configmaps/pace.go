// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// minUpdateInterval is the least time between two updates of one pod's
// ConfigMaps: what changes faster, such as a label written in a loop, is
// coalesced, and its last value wins.
const minUpdateInterval = 100 * time.Millisecond

// pace remembers when each pod's ConfigMaps were last updated, for as long as
// it matters.
type pace struct {
	mu        sync.Mutex
	interval  time.Duration
	now       func() time.Time
	recent    map[types.NamespacedName]time.Time
	older     map[types.NamespacedName]time.Time
	rotatedAt time.Time
}

func newPace(interval time.Duration, now func() time.Time) *pace {
	return &pace{interval: interval, now: now, recent: map[types.NamespacedName]time.Time{}}
}

// wait tells how long the pod's next update has to wait; zero means that it may
// go ahead.
func (p *pace) wait(pod types.NamespacedName) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.recent[pod]
	if !ok {
		last = p.older[pod]
	}
	return max(0, p.interval-p.now().Sub(last))
}

// updated notes an update that is being made now.
func (p *pace) updated(pod types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if now.Sub(p.rotatedAt) >= p.interval {
		p.older, p.recent, p.rotatedAt = p.recent, map[types.NamespacedName]time.Time{}, now
	}
	p.recent[pod] = now
}
