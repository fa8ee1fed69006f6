// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

func TestGarbageTuner(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	var waiting atomic.Int64
	var synced atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	g := &garbageTuner{synced: synced.Load, waiting: func() int { return int(waiting.Load()) }}
	go func() { ended <- g.Start(ctx) }()

	for _, step := range []struct {
		what    string
		synced  bool
		waiting int64
		want    int
	}{
		{"the first lists", false, 0, crowdGC},
		{"at rest", true, 0, restGC},
		{"a crowd comes", true, crowdSize + 1, crowdGC},
		{"it is not through yet", true, 1, crowdGC},
		{"at rest again", true, 0, restGC},
		{"a few", true, crowdSize, restGC},
	} {
		synced.Store(step.synced)
		waiting.Store(step.waiting)
		time.Sleep(gcPeriod + gcPeriod/2) // it looks once a period
		if got := gcPercent(); got != step.want {
			t.Errorf("%s: GOGC %d, want %d", step.what, got, step.want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func gcPercent() int {
	percent := debug.SetGCPercent(100)
	debug.SetGCPercent(percent)
	return percent
}
