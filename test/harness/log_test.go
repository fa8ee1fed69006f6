// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"slices"
	"testing"
)

func TestErrorLines(t *testing.T) {
	const log = `I1123 04:47:00.000001       1 manager.go:1] "Starting" mode="manager"
E1123 04:47:00.000002       1 manager.go:2] "Gave up" err="no"
W1123 04:47:00.000003       1 manager.go:3] "Will try again"
Everything else that begins with E or F is none.
For example this.
F1123 04:47:00.000004       1 manager.go:4] "The end"
panic: assignment to entry in nil map
	E1123 is no beginning of this line`
	want := []string{
		`E1123 04:47:00.000002       1 manager.go:2] "Gave up" err="no"`,
		`F1123 04:47:00.000004       1 manager.go:4] "The end"`,
		"panic: assignment to entry in nil map",
	}
	if got := ErrorLines(log); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := ErrorLines(""); len(got) != 0 {
		t.Errorf("an empty log has %q", got)
	}
}
