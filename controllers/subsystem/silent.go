// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// onlyReadiness keeps of an agent's pod what silent reads.
func onlyReadiness(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	kept := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, Labels: pod.Labels}}
	kept.Spec.NodeName = pod.Spec.NodeName
	if c := readiness(pod); c != nil {
		kept.Status.Conditions = []corev1.PodCondition{*c}
	}
	return kept, nil
}

// silent are the nodes that have pods of agents of which none is ready, and since when.
// It is the kubelet that says so or, of a node that nothing is heard of, the node
// controller. Of a pod that was never looked at nothing is known.
func silent(pods []corev1.Pod) map[string]time.Time {
	since, answers := map[string]time.Time{}, map[string]bool{}
	for i := range pods {
		node, c := pods[i].Spec.NodeName, readiness(&pods[i])
		switch {
		case c == nil:
		case c.Status == corev1.ConditionTrue:
			answers[node] = true
		case since[node].IsZero() || c.LastTransitionTime.Time.Before(since[node]):
			since[node] = c.LastTransitionTime.UTC()
		}
	}
	for node := range answers {
		delete(since, node)
	}
	return since
}

func readiness(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c
		}
	}
	return nil
}
