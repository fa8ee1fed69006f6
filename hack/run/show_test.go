// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestShowChanges(t *testing.T) {
	var out strings.Builder
	c := &console{out: &out}
	c.showChanges(changes(
		map[string]string{"same": "x", "longer": "one\ntwo\n", "gone": "1"},
		map[string]string{"same": "x", "longer": "one", "new": ""},
	))
	want := `     - gone    1
     - longer  one
               two
     + longer  one
     + new
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestConsoleWithoutColours(t *testing.T) {
	var out strings.Builder
	c := &console{out: &out}
	c.step("Begin %d", 1)
	w := c.lines("log | ")
	for _, part := range []string{"a", "b\nc", "\n\nd"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "\n1. Begin 1\n   log | ab\n   log | c\n   log |\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestIsHeld(t *testing.T) {
	now := time.Now()
	lease := func(holder string, age time.Duration) *coordinationv1.Lease {
		seconds := int32(5)
		l := &coordinationv1.Lease{}
		l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: now.Add(-age)}}
		return l
	}
	for name, tc := range map[string]struct {
		lease *coordinationv1.Lease
		want  bool
	}{
		"held":     {lease("a", time.Second), true},
		"expired":  {lease("a", 6*time.Second), false},
		"released": {lease("", time.Second), false},
		"new":      {&coordinationv1.Lease{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := isHeld(tc.lease, now); got != tc.want {
				t.Errorf("isHeld is %v, want %v", got, tc.want)
			}
		})
	}
}

// The sample of the repository is one that the tour can show.
func TestReadSample(t *testing.T) {
	s, err := readSample("../../config/samples")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.objects) != 5 || len(s.selected) != 2 || len(s.others) != 1 || s.namespace() != "podconfigmap-demo" {
		t.Errorf("read %d objects, %d selected pods and %d others in %q", len(s.objects), len(s.selected), len(s.others), s.namespace())
	}
}
