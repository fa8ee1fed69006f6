// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// Annotations of the DaemonSets. They hold what a next leader has to know.
const (
	// annotationApplied is the generation that the last write of ours made, and the
	// fingerprint of what it wrote. The server's defaults are of no matter then,
	// and whoever edits the spec makes another generation.
	annotationApplied = "podconfig.example.com/applied"
	// annotationAppliedAt is when that was, in RFC 3339.
	annotationAppliedAt = "podconfig.example.com/applied-at"
	// annotationCleanupSince is when the cleanup began; agents read it, too.
	annotationCleanupSince = v1alpha1.AnnotationCleanupSince
	// annotationRetriedAt is when the DaemonSet was last touched so that pods that
	// admission refused are tried again.
	annotationRetriedAt = "podconfig.example.com/retried-at"
)

// step is what has to be done with a DaemonSet.
type step int

const (
	stepNone step = iota
	stepCreate
	// stepUpdate writes the spec: it should be another, or somebody edited it.
	stepUpdate
	// stepTouch writes labels or the owner only.
	stepTouch
	// stepWait is for a DaemonSet that is being deleted.
	stepWait
	// stepRefuse is for one that is not ours.
	stepRefuse
)

// unsettled stands for the generation while it is not known yet: an edit of the
// spec may make a new one or, where the spec was right, none. A guess would hide
// an edit that somebody makes in that moment.
const unsettled = 0

func applied(generation int64, fingerprint string) string {
	return fmt.Sprintf("%d %s", generation, fingerprint)
}

// decide compares a DaemonSet with what it should be, and returns the object to
// write, if any. The fingerprint is want's.
func decide(live, want *appsv1.DaemonSet, fingerprint string, now time.Time) (step, *appsv1.DaemonSet) {
	if live == nil {
		set := want.DeepCopy()
		set.Annotations = map[string]string{annotationApplied: applied(1, fingerprint), annotationAppliedAt: now.UTC().Format(time.RFC3339)}
		return stepCreate, set
	}
	if live.Labels[labelComponent] != component && live.Annotations[annotationApplied] == "" {
		return stepRefuse, nil
	}
	if live.DeletionTimestamp != nil {
		return stepWait, nil
	}
	set, does := live.DeepCopy(), stepNone
	if !subset(want.Labels, live.Labels) || !owned(live, want) {
		does = stepTouch
		set.Labels = merged(live.Labels, want.Labels)
		set.OwnerReferences = append(withoutOwners(live, want), want.OwnerReferences...)
	}
	if live.Annotations[annotationApplied] != applied(live.Generation, fingerprint) {
		does = stepUpdate
		set.Spec = *want.Spec.DeepCopy()
		set.Annotations = merged(live.Annotations, map[string]string{
			annotationApplied: applied(unsettled, fingerprint), annotationAppliedAt: now.UTC().Format(time.RFC3339),
		})
		delete(set.Annotations, annotationCleanupSince)
		delete(set.Annotations, annotationRetriedAt)
	}
	return does, set
}

func subset(want, all map[string]string) bool {
	for key, value := range want {
		if got, ok := all[key]; !ok || got != value {
			return false
		}
	}
	return true
}

func merged(all, over map[string]string) map[string]string {
	out := maps.Clone(all)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, over)
	return out
}

func owned(live, want *appsv1.DaemonSet) bool {
	for _, owner := range want.OwnerReferences {
		if !slices.ContainsFunc(live.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == owner.UID }) {
			return false
		}
	}
	return true
}

// withoutOwners are the owners that are not the manager's Deployment, now or
// under another UID before.
func withoutOwners(live, want *appsv1.DaemonSet) []metav1.OwnerReference {
	return slices.DeleteFunc(slices.Clone(live.OwnerReferences), func(o metav1.OwnerReference) bool {
		return slices.ContainsFunc(want.OwnerReferences, func(w metav1.OwnerReference) bool { return o.Kind == w.Kind && o.Name == w.Name })
	})
}

// at reads a time from an annotation; a bad one is long ago.
func at(set *appsv1.DaemonSet, annotation string) time.Time {
	t, err := time.Parse(time.RFC3339, set.Annotations[annotation])
	if err != nil {
		return time.Time{}
	}
	return t
}

func isCleaning(set *appsv1.DaemonSet) bool { return set.Annotations[annotationCleanupSince] != "" }

// busyLimit is how long a roll-out or a cleanup may hold back an upgrade of the
// operator: a bad one must not block its own mending.
const busyLimit = 10 * time.Minute

// rollingOut tells until when a roll-out counts as under way; the zero time
// where none is.
func rollingOut(set *appsv1.DaemonSet) time.Time {
	s := set.Status
	done := s.ObservedGeneration >= set.Generation && s.UpdatedNumberScheduled >= s.DesiredNumberScheduled && s.NumberAvailable >= s.DesiredNumberScheduled
	if done {
		return time.Time{}
	}
	return at(set, annotationAppliedAt).Add(busyLimit)
}

const (
	// refusalAge is how old an Event of a refused pod may be to count. The
	// DaemonSet controller may be silent for five minutes about the same thing.
	refusalAge = 10 * time.Minute
	// reasonFailedCreate is that of kube-controller-manager's Event about a pod
	// that it could not create.
	reasonFailedCreate = "FailedCreate"
)

// refusal returns the API server's last words where admission keeps a
// DaemonSet's pods out: pods are missing, and an Event says that creating one
// failed. A DaemonSet's status does not say so.
func refusal(set *appsv1.DaemonSet, events []corev1.Event, now time.Time) string {
	if set.Status.ObservedGeneration >= set.Generation && set.Status.CurrentNumberScheduled >= set.Status.DesiredNumberScheduled {
		return ""
	}
	var last time.Time
	message := ""
	for i := range events {
		e := &events[i]
		if e.Reason != reasonFailedCreate || e.InvolvedObject.UID != set.UID {
			continue
		}
		if t := eventTime(e); t.After(last) && now.Sub(t) < refusalAge && forbidden(e.Message) {
			last, message = t, e.Message
		}
	}
	return plainly(message)
}

// plainly leaves out the name of the pod, which is another at every try.
func plainly(message string) string {
	if _, after, ok := strings.Cut(message, " is forbidden: "); ok {
		return after
	}
	return strings.TrimPrefix(message, "Error creating: ")
}

// forbidden tells an answer of admission from a passing failure.
func forbidden(message string) bool {
	return strings.Contains(message, " is forbidden: ") || strings.Contains(message, "admission webhook") || strings.Contains(message, "ValidatingAdmissionPolicy")
}

func eventTime(e *corev1.Event) time.Time {
	last := e.CreationTimestamp.Time
	for _, t := range []time.Time{e.LastTimestamp.Time, e.EventTime.Time} {
		if t.After(last) {
			last = t
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(last) {
		last = e.Series.LastObservedTime.Time
	}
	return last
}

// notAdmitted is the message of the reason AgentNotAdmitted.
func notAdmitted(namespace, answer string) string {
	remedy := "see the answer"
	switch {
	case strings.Contains(answer, "PodSecurity"):
		remedy = fmt.Sprintf("run: kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite", namespace)
	case strings.Contains(answer, "security context constraint"):
		remedy = fmt.Sprintf("run: oc adm policy add-scc-to-user privileged -z %s -n %s", AgentName, namespace)
	}
	return fmt.Sprintf("the cluster does not admit the node agents' pods in namespace %q: %s; the API server's answer: %s", namespace, remedy, answer)
}
