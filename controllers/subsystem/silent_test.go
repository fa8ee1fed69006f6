// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// agentOn is a pod of an agent, with other conditions beside the one that counts.
func agentOn(node string, ready corev1.ConditionStatus, since time.Time) corev1.Pod {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-" + node}, Spec: corev1.PodSpec{NodeName: node, Hostname: "no matter"}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	if ready != "" {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(since)})
	}
	return pod
}

func TestSilent(t *testing.T) {
	later := noon.Add(time.Minute)
	for name, tc := range map[string]struct {
		pods []corev1.Pod
		want map[string]time.Time
	}{
		"no pods":                   {nil, nil},
		"ready":                     {[]corev1.Pod{agentOn("a", corev1.ConditionTrue, noon)}, nil},
		"never looked at":           {[]corev1.Pod{agentOn("a", "", noon)}, nil},
		"not ready":                 {[]corev1.Pod{agentOn("a", corev1.ConditionFalse, noon), agentOn("b", corev1.ConditionTrue, noon)}, map[string]time.Time{"a": noon}},
		"one goes, one is ready":    {[]corev1.Pod{agentOn("a", corev1.ConditionFalse, noon), agentOn("a", corev1.ConditionTrue, later)}, nil},
		"one is ready, another not": {[]corev1.Pod{agentOn("a", corev1.ConditionTrue, later), agentOn("a", corev1.ConditionFalse, noon)}, nil},
		"one goes, one comes":       {[]corev1.Pod{agentOn("a", corev1.ConditionFalse, later), agentOn("a", corev1.ConditionFalse, noon)}, map[string]time.Time{"a": noon}},
		"nobody knows":              {[]corev1.Pod{agentOn("a", corev1.ConditionUnknown, noon)}, map[string]time.Time{"a": noon}},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range tc.pods {
				kept, err := onlyReadiness(&tc.pods[i])
				if err != nil {
					t.Fatal(err)
				}
				if pod := kept.(*corev1.Pod); pod.Spec.Hostname != "" || pod.Name != tc.pods[i].Name || len(pod.Status.Conditions) > 1 {
					t.Errorf("kept %+v", pod)
				}
				tc.pods[i] = *kept.(*corev1.Pod)
			}
			if got := silent(tc.pods); !maps.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// Who listens is told of each change, and of nothing else.
func TestBoardTellsOfChanges(t *testing.T) {
	board, told := &Board{}, 0
	board.OnChange(func() { told++ })
	for i, s := range []struct {
		state State
		tells bool
	}{
		{State{}, true}, // it is known now
		{State{Silent: map[string]time.Time{}}, false},
		{State{Silent: map[string]time.Time{"a": noon}}, true},
		{State{Silent: map[string]time.Time{"a": noon.In(time.FixedZone("east", 3600))}}, false},
		{State{Silent: map[string]time.Time{"a": noon.Add(time.Second)}}, true},
		{State{Silent: map[string]time.Time{"b": noon.Add(time.Second)}}, true},
		{State{}, true},
		{State{Busy: "a roll-out", BusyUntil: noon}, true},
		{State{Busy: "a roll-out", BusyUntil: noon}, false},
		{State{Problem: "none"}, true},
		{State{Refused: "none"}, true},
	} {
		before := told
		board.Set(s.state)
		if (told > before) != s.tells {
			t.Errorf("state %d: told is %t", i, told > before)
		}
	}
}
