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

// The samples of the repository are such that the tour can show them.
func TestReadSample(t *testing.T) {
	for folder, want := range map[string]struct {
		objects, others int
		namespace       string
	}{
		"../../config/samples":      {5, 1, "podconfigmap-demo"},
		"../../config/samples/ebpf": {4, 0, "podconfigmap-ebpf-demo"},
	} {
		s, err := readSample(folder)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.objects) != want.objects || len(s.selected) != 2 || len(s.others) != want.others || s.namespace() != want.namespace {
			t.Errorf("%s: read %d objects, %d selected pods and %d others in %q", folder, len(s.objects), len(s.selected), len(s.others), s.namespace())
		}
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	c := &console{out: &out}
	c.table([][]string{{"POD", "CALLS"}, {"server", "1"}, {"c", "1000"}})
	if want := "   POD     CALLS\n   server  1\n   c       1000\n"; out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestPrecise(t *testing.T) {
	for d, want := range map[time.Duration]string{
		123456 * time.Nanosecond: "0.123 ms", 45 * time.Millisecond: "45 ms", 2004 * time.Millisecond: "2.0 s",
	} {
		if got := precise(d); got != want {
			t.Errorf("%v is written as %q, want %q", d, got, want)
		}
	}
}
