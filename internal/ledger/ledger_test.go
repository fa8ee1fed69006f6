// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

var config = types.NamespacedName{Namespace: "ns", Name: "config"}

func TestChangesAreAnnouncedOnceUntilRead(t *testing.T) {
	announced := 0
	l := New()
	l.OnChange(func(c types.NamespacedName) {
		if c != config {
			t.Errorf("announced %v", c)
		}
		announced++
	})
	l.Open("uid", config, Head{Generation: 1})
	steps := []struct {
		do   func()
		want int
	}{
		// Opening announces, and nothing more is until it is read.
		{func() {}, 1},
		{func() { l.Record("uid", "a", Entry{Generation: 1}) }, 1},
		{func() { l.Begin("uid") }, 1},
		{func() { l.Record("uid", "a", Entry{Generation: 1}) }, 1},
		{func() { l.Record("uid", "a", Entry{Generation: 2}) }, 2},
		{func() { l.Record("uid", "b", Entry{Generation: 2}) }, 2},
		{func() { l.Begin("uid") }, 2},
		{func() { l.Forget("uid", "unknown") }, 2},
		{func() { l.Forget("uid", "a") }, 3},
		{func() { l.Begin("uid") }, 3},
		{func() { l.Record("uid", "b", Entry{Generation: 1, Failure: &Failure{"R", "m"}}) }, 4},
		{func() { l.Begin("uid") }, 4},
		{func() { l.Record("uid", "b", Entry{Generation: 1, Failure: &Failure{"R", "m"}}) }, 4},
		{func() { l.Record("other", "b", Entry{Generation: 1}) }, 4},
		{func() { l.Open("uid", config, Head{2, &Failure{"R", "m"}}) }, 5},
	}
	for i, step := range steps {
		if step.do(); announced != step.want {
			t.Errorf("step %d: announced %d times, want %d", i, announced, step.want)
		}
	}
}

func TestReadGivesKnownAndUnknownPods(t *testing.T) {
	l := New()
	l.Open("uid", config, Head{Generation: 1})
	l.Record("uid", "a", Entry{Generation: 3, Present: true})
	l.Record("uid", "elsewhere", Entry{Generation: 3})
	got := map[string]Entry{}
	l.Read("uid", []string{"a", "b"}, func(pod string, e Entry) { got[pod] = e })
	if len(got) != 2 || got["a"] != (Entry{Generation: 3, Present: true}) || got["b"] != (Entry{}) {
		t.Errorf("got %v", got)
	}
	l.Open("uid", config, Head{4, &Failure{"TemplateInvalid", "no"}})
	if head := l.Begin("uid"); head.Generation != 4 || head.Problem == nil || head.Problem.Message != "no" {
		t.Errorf("the config's head is %+v", head)
	}
	if head := l.Begin("unknown"); head != (Head{}) {
		t.Errorf("an unknown config's head is %+v", head)
	}
	if e, known := l.Get("uid", "a"); !known || e.Generation != 3 {
		t.Error("opening again lost the entries")
	}
	l.Close("uid")
	if _, known := l.Get("uid", "a"); known {
		t.Error("a closed config still has entries")
	}
}
