// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServes(t *testing.T) {
	affinity := func(operator corev1.NodeSelectorOperator, values ...string) *corev1.Affinity {
		return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: "pool", Operator: operator, Values: values},
			}}},
		}}}
	}
	for name, tc := range map[string]struct {
		pod    corev1.PodSpec
		taints []corev1.Taint
		want   bool
	}{
		"nothing is asked":            {want: true},
		"the selector matches":        {pod: corev1.PodSpec{NodeSelector: map[string]string{"pool": "a"}}, want: true},
		"the selector does not match": {pod: corev1.PodSpec{NodeSelector: map[string]string{"pool": "b"}}},
		"the affinity matches":        {pod: corev1.PodSpec{Affinity: affinity(corev1.NodeSelectorOpNotIn, "b")}, want: true},
		"the affinity does not match": {pod: corev1.PodSpec{Affinity: affinity(corev1.NodeSelectorOpNotIn, "a")}},
		"the affinity is malformed":   {pod: corev1.PodSpec{Affinity: affinity("Like", "a")}, want: true},
		"a taint that evicts":         {taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}},
		"a taint that only keeps new pods away": {
			taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}, want: true,
		},
		"a taint that is tolerated": {
			pod:    corev1.PodSpec{Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}},
			taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}, want: true,
		},
		"the node is not reachable": {taints: []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			set := &appsv1.DaemonSet{}
			set.Spec.Template.Spec = tc.pod
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"pool": "a"}}, Spec: corev1.NodeSpec{Taints: tc.taints}}
			if got := serves(t.Context(), set, node); got != tc.want {
				t.Errorf("serves is %v, want %v", got, tc.want)
			}
		})
	}
}
