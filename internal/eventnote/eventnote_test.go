// SPDX-License-Identifier: Apache-2.0

package eventnote

import (
	"strings"
	"testing"
)

func TestShorten(t *testing.T) {
	for in, want := range map[string]string{
		"short":                  "short",
		strings.Repeat("a", 10):  strings.Repeat("a", 10),
		strings.Repeat("a", 11):  "aaaaaaa...",
		"aaaaaa" + "é" + "aaaaa": "aaaaaa...",
	} {
		if got := Shorten(in, 10); got != want {
			t.Errorf("Shorten(%q, 10) = %q, want %q", in, got, want)
		}
	}
}
