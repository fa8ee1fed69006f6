// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	// crowdGC is GOGC while many pods wait: Go's default. More saves time and
	// scatters what stays over a larger heap, which then cannot be given back: at
	// 400 a pod with two ConfigMaps cost 9 KiB of resident memory in place of 7.
	crowdGC = 100
	// restGC is GOGC at rest, when there is little garbage and memory counts.
	restGC = 50
	// crowdSize is how many waiting pods are a crowd.
	crowdSize = 100
	gcPeriod  = time.Second
)

// garbageTuner trades memory for speed while a crowd of pods is worked on, and
// gives the memory back afterwards. It is a manager's Runnable.
type garbageTuner struct {
	// synced tells whether the first lists are complete.
	synced func() bool
	// waiting tells how many pods wait.
	waiting func() int
}

// Start tunes until the context ends.
func (g *garbageTuner) Start(ctx context.Context) error {
	crowd := true
	debug.SetGCPercent(crowdGC)
	tick := time.NewTicker(gcPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch waiting := g.waiting(); {
		case crowd && waiting == 0 && g.synced():
			debug.SetGCPercent(restGC)
			debug.FreeOSMemory()
			crowd = false
		case !crowd && waiting > crowdSize:
			debug.SetGCPercent(crowdGC)
			crowd = true
		}
	}
}

// NeedLeaderElection is false: standbys list, too.
func (g *garbageTuner) NeedLeaderElection() bool { return false }
