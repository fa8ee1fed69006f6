// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"errors"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

func TestBackoff(t *testing.T) {
	const ms, resync = time.Millisecond, 10 * time.Second
	resource := schema.GroupResource{Resource: "configmaps"}
	conflict := apierrors.NewConflict(resource, "x", errors.New("it changed"))
	server := apierrors.NewInternalError(errors.New("boom"))
	forbidden := apierrors.NewForbidden(resource, "x", errors.New("no"))
	refused := error(syscall.ECONNREFUSED)

	b := New(4, resync)
	a, other := types.NamespacedName{Name: "a"}, types.NamespacedName{Name: "b"}
	for i, step := range []struct {
		what      string
		object    types.NamespacedName
		err       error
		wait      time.Duration
		exhausted bool
	}{
		{"first", a, conflict, 50 * ms, false},
		{"second, slower", a, server, 1000 * ms, false},
		{"no answer is not counted", a, refused, 500 * ms, false},
		{"no answer again", a, refused, 1000 * ms, false},
		{"third", a, forbidden, 2000 * ms, false},
		{"no answer begins anew", a, refused, 500 * ms, false},
		{"another object", other, server, 500 * ms, false},
		{"fourth", a, server, resync, true},
		{"fifth", a, conflict, resync, true},
		{"no answer in between", a, refused, 500 * ms, false},
	} {
		if wait, exhausted := b.Failed(step.object, step.err); wait != step.wait || exhausted != step.exhausted {
			t.Errorf("step %d, %s: %v, %t; want %v, %t", i, step.what, wait, exhausted, step.wait, step.exhausted)
		}
	}
	b.Succeeded(a)
	if wait, exhausted := b.Failed(a, server); wait != 500*ms || exhausted {
		t.Errorf("after a success: %v, %t", wait, exhausted)
	}
	for range 20 {
		b.Failed(a, refused)
	}
	if wait, _ := b.Failed(a, refused); wait != unanswered {
		t.Errorf("no answer for long: %v, want %v", wait, unanswered)
	}
}

func TestNoWaitIsLongerThanTheResync(t *testing.T) {
	b := New(100, time.Second)
	object := types.NamespacedName{Name: "a"}
	for range 10 {
		if wait, _ := b.Failed(object, apierrors.NewInternalError(errors.New("boom"))); wait > time.Second {
			t.Fatalf("waits %v", wait)
		}
		if wait, _ := b.Failed(object, syscall.ECONNREFUSED); wait > time.Second {
			t.Fatalf("waits %v for an answer", wait)
		}
	}
}

func TestWhatIsRefusedElsewhereIsCounted(t *testing.T) {
	const resync = time.Minute
	b := New(3, resync)
	object := types.NamespacedName{Name: "a"}
	for i, want := range []struct {
		wait      time.Duration
		exhausted bool
	}{{500 * time.Millisecond, false}, {time.Second, false}, {resync, true}, {resync, true}} {
		if wait, exhausted := b.Refused(object); wait != want.wait || exhausted != want.exhausted {
			t.Errorf("failure %d: %v, %t; want %v, %t", i, wait, exhausted, want.wait, want.exhausted)
		}
	}
	b.Succeeded(object)
	if wait, exhausted := b.Refused(object); wait != 500*time.Millisecond || exhausted {
		t.Errorf("after a success: %v, %t", wait, exhausted)
	}
}
