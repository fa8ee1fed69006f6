// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// clock is a clock that tests turn by hand.
type clock struct{ t time.Time }

func newClock() *clock                { return &clock{time.Unix(1_000_000, 0)} }
func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }

func key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "shop", Name: name}
}

func TestPace(t *testing.T) {
	const interval = 100 * time.Millisecond
	c := newClock()
	p := newPace(interval, c.now)
	expect := func(pod string, want time.Duration) {
		t.Helper()
		if got := p.wait(key(pod)); got != want {
			t.Errorf("%s waits %v, want %v", pod, got, want)
		}
	}
	expect("a", 0)
	p.updated(key("a"))
	expect("a", interval)
	expect("b", 0)
	c.pass(60 * time.Millisecond)
	p.updated(key("b"))
	expect("a", 40*time.Millisecond)
	c.pass(50 * time.Millisecond)
	expect("a", 0)
	p.updated(key("c")) // rotates: b is among the older ones now
	expect("b", 50*time.Millisecond)
	c.pass(interval)
	for range 3 {
		p.updated(key("c"))
		c.pass(interval)
	}
	if kept := len(p.recent) + len(p.older); kept > 2 {
		t.Errorf("%d pods are remembered, most of them for nothing", kept)
	}
}

func TestWaiting(t *testing.T) {
	w := newWaiting()
	on := func(name string) string {
		var pods []string
		for _, pod := range w.on(key(name)) {
			pods = append(pods, pod.Name)
		}
		slices.Sort(pods)
		return strings.Join(pods, " ")
	}
	for i, tc := range []struct {
		pod   string
		names []string
		left  []string
		x, y  string // who waits for x and for y after it
	}{
		{"a", []string{"x"}, nil, "a", ""},
		{"b", []string{"x", "y"}, nil, "a b", "b"},
		{"b", []string{"x", "y"}, nil, "a b", "b"},
		{"b", []string{"y"}, []string{"x"}, "a", "b"},
		{"a", nil, []string{"x"}, "", "b"},
		{"a", nil, nil, "", "b"},
		{"b", []string{"x"}, []string{"y"}, "b", ""},
		{"b", nil, []string{"x"}, "", ""},
	} {
		if left := w.set(key(tc.pod), tc.names); !slices.Equal(left, tc.left) {
			t.Errorf("step %d: %s no longer waits for %v, want %v", i, tc.pod, left, tc.left)
		}
		if x, y := on("x"), on("y"); x != tc.x || y != tc.y {
			t.Errorf("step %d: %q wait for x, %q for y; want %q, %q", i, x, y, tc.x, tc.y)
		}
	}
	if len(w.pods)+len(w.names) > 0 {
		t.Errorf("it keeps %v and %v of nobody", w.pods, w.names)
	}
	w.set(key("a"), []string{"x"})
	if other := w.on(types.NamespacedName{Namespace: "other", Name: "x"}); len(other) > 0 {
		t.Errorf("%v of another namespace wait", other)
	}
}

func TestHolds(t *testing.T) {
	c := newClock()
	h := newHolds(5*time.Second, c.now)
	k := holdKey{key("a"), "x"}
	if left := h.left(k); left != 0 {
		t.Errorf("%v are left of no hold", left)
	}
	for i, want := range []time.Duration{1, 2, 4, 5, 5} {
		if got := h.hold(k); got != want*time.Second {
			t.Errorf("hold %d: %v, want %v s", i, got, int(want))
		}
	}
	c.pass(2 * time.Second)
	if left := h.left(k); left != 3*time.Second {
		t.Errorf("%v are left after 2 of 5 s", left)
	}
	if left := h.left(holdKey{key("b"), "x"}); left != 0 {
		t.Errorf("%v are left for another pod", left)
	}
	c.pass(time.Minute)
	if left := h.left(k); left != 0 {
		t.Errorf("%v are left after a minute", left)
	}
	h.hold(k)
	h.release(k)
	if left := h.left(k); left != 0 {
		t.Errorf("%v are left after the release", left)
	}
	if wait := h.hold(k); wait != time.Second {
		t.Errorf("the first hold after a release: %v", wait)
	}
	if wait := newHolds(500*time.Millisecond, c.now).hold(k); wait != 500*time.Millisecond {
		t.Errorf("a hold outlasts the resync period: %v", wait)
	}
}

func TestDeparted(t *testing.T) {
	c := newClock()
	d := newDeparted(c.now)
	expect := func(what string, want time.Duration) {
		t.Helper()
		if got := d.graceLeft(key("a")); got != want {
			t.Errorf("%s: %v left, want %v", what, got, want)
		}
	}
	expect("found gone", orphanGrace)
	c.pass(10 * time.Second)
	expect("later", orphanGrace-10*time.Second)
	c.pass(time.Hour)
	expect("much later", 0)
	expect("asked again", 0)
	d.returned(key("a"))
	expect("gone again", orphanGrace)
}

func TestInherited(t *testing.T) {
	i := newInherited()
	i.add(key("a"))
	for n, want := range []bool{true, false, false} {
		if got := i.take(key("a")); got != want {
			t.Errorf("look %d at a: inherited %t, want %t", n, got, want)
		}
	}
	if i.take(key("b")) {
		t.Error("b is inherited")
	}
	if len(i.pods) > 0 {
		t.Errorf("it keeps %v", i.pods)
	}
}

func TestRegistry(t *testing.T) {
	r := newRegistry()
	names := func(namespace string) string {
		var all []string
		for _, c := range r.inNamespace(namespace) {
			all = append(all, c.Name)
		}
		return strings.Join(all, " ")
	}
	for _, name := range []string{"m", "z", "a"} {
		r.put(&Config{Namespace: "shop", Name: name, Generation: 1})
	}
	r.put(&Config{Namespace: "other", Name: "m"})
	before := r.inNamespace("shop")
	r.put(&Config{Namespace: "shop", Name: "m", Generation: 2})
	if got := names("shop"); got != "a m z" {
		t.Errorf("configs %q, want a m z", got)
	}
	if c := r.get(key("m")); c == nil || c.Generation != 2 {
		t.Errorf("the config is %+v, want generation 2", c)
	}
	if before[1].Generation != 1 {
		t.Error("a list that was handed out changed")
	}
	r.remove(key("m"))
	r.remove(key("absent"))
	if got := names("shop"); got != "a z" || r.get(key("m")) != nil {
		t.Errorf("after the removal: %q", got)
	}
	if got := names("other"); got != "m" {
		t.Errorf("another namespace: %q", got)
	}
	r.remove(key("a"))
	r.remove(key("z"))
	if len(r.configs) != 1 {
		t.Errorf("it keeps %v", r.configs)
	}
}
