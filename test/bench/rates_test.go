// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// TestMiddle: each round is compared with the bare calls beside it, and the one with
// the median ratio counts, though another one was faster.
func TestMiddle(t *testing.T) {
	limits := &bare{speeds: map[operation][]speed{creation: {{rate: 100}, {rate: 100}, {rate: 300}, {rate: 500}}}}
	all := map[operation][]converged{creation: {{speed: speed{rate: 90}}, {speed: speed{rate: 100}}, {speed: speed{rate: 280}}}}
	got := middle(limits, all, creation, func(s speed) float64 { return s.rate })
	if want := (compared{280, 400, 0.7}); got != want {
		t.Errorf("the middle one of 90/100, 100/200 and 280/400 is %v, want %v", got, want)
	}
}
