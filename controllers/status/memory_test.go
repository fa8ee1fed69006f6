// SPDX-License-Identifier: Apache-2.0

package status

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

func TestWait(t *testing.T) {
	const ms = time.Millisecond
	type look struct {
		after            time.Duration // since the step before
		pending, settled bool
		want             time.Duration
		write            bool // the status was written then
	}
	for name, looks := range map[string][]look{
		"done at once":                      {{want: 0}},
		"done soon after the last write":    {{write: true}, {after: 300 * ms, want: 700 * ms}, {after: 700 * ms, want: 0}},
		"done long after the last write":    {{write: true}, {after: time.Hour, want: 0}},
		"work that ends in a moment":        {{pending: true, want: time.Second}, {after: 100 * ms, want: 400 * ms}, {after: 400 * ms, want: 0}},
		"work that goes on is told of":      {{pending: true, want: time.Second}, {after: 400 * ms, pending: true, want: 100 * ms}, {after: 200 * ms, pending: true, want: 400 * ms}, {after: 500 * ms, pending: true, want: 0}},
		"patience begins anew":              {{pending: true, want: time.Second}, {after: 900 * ms, want: 0}, {after: time.Second, pending: true, want: time.Second}},
		"a write, then work":                {{write: true}, {after: 900 * ms, pending: true, want: 100 * ms}, {after: 100 * ms, pending: true, want: 4 * time.Second}, {after: 3 * time.Second, want: 0}},
		"work, then a write, then work":     {{pending: true, want: time.Second}, {after: time.Second, pending: true, want: 0, write: true}, {after: 200 * ms, pending: true, want: 800 * ms}},
		"a manager that begins":             {{pending: true, settled: true, want: 10 * time.Second}, {after: 4 * time.Second, pending: true, settled: true, want: 6 * time.Second}},
		"a manager that wrote it before":    {{settled: true, write: true}, {after: 5 * time.Second, pending: true, settled: true, want: time.Second}},
		"a manager that finds all in order": {{pending: true, settled: true, want: 10 * time.Second}, {after: 100 * ms, settled: true, want: 400 * ms}, {after: 500 * ms, settled: true, want: 0}},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1_000_000, 0)
			m := &memory{now: func() time.Time { return now }, configs: map[types.NamespacedName]times{}}
			key, other := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
			m.wrote(other)
			for i, l := range looks {
				now = now.Add(l.after)
				got := m.pause(key)
				if got == 0 {
					got = m.patience(key, l.pending, l.settled)
				}
				if got != l.want {
					t.Errorf("look %d: wait %v, want %v", i, got, l.want)
				}
				if l.write {
					m.wrote(key)
				}
			}
			m.forget(key)
			if len(m.configs) != 1 {
				t.Errorf("it remembers %v", m.configs)
			}
		})
	}
}
