// SPDX-License-Identifier: Apache-2.0

// Package status tells, in each PodConfigMapConfig's status, what the operator
// observed: counts, conditions, and the generation that is done.
package status

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
)

// summary is what became of the pods that match a config.
type summary struct {
	matched, synced, failed, pending, present int
	// failures are of the worst reason, in the order of the pods' names.
	failures []podFailure
	// problem is the config's own.
	problem *ledger.Failure
	// unread tells that this generation of the config has not been taken in yet.
	unread bool
}

type podFailure struct {
	pod string
	*ledger.Failure
}

// namedFailures is how many failing pods a condition names.
const namedFailures = 3

// maxMessage bounds a condition's message, in bytes, so that it stays readable.
const maxMessage = 4096

// severity orders the reasons: the first one is shown.
var severity = []string{
	v1alpha1.ReasonRetriesExhausted, v1alpha1.ReasonTooLarge, v1alpha1.ReasonTemplateInvalid, v1alpha1.ReasonNameConflict,
}

// summarize reads the ledger for the pods that match. The head is what it told
// before they were listed.
func summarize(book *ledger.Ledger, head ledger.Head, pcmc *v1alpha1.PodConfigMapConfig, pods []string) summary {
	s := summary{matched: len(pods), problem: head.Problem, unread: head.Generation != pcmc.Generation}
	var failures []podFailure
	book.Read(pcmc.UID, pods, func(pod string, e ledger.Entry) {
		if e.Present {
			s.present++
		}
		switch {
		case e.Generation != pcmc.Generation:
			s.pending++
		case e.Failure != nil:
			s.failed++
			failures = append(failures, podFailure{pod, e.Failure})
		default:
			s.synced++
		}
	})
	s.failures = worst(failures)
	return s
}

// worst returns the failures of the worst reason, in the order of the pods'
// names.
func worst(failures []podFailure) []podFailure {
	for _, reason := range severity {
		var of []podFailure
		for _, f := range failures {
			if f.Reason == reason {
				of = append(of, f)
			}
		}
		if len(of) > 0 {
			slices.SortFunc(of, func(a, b podFailure) int { return strings.Compare(a.pod, b.pod) })
			return of
		}
	}
	return nil
}

// unfinished tells whether work on this generation is still under way.
func (s *summary) unfinished() bool { return s.unread || s.pending > 0 }

// configMapsSynced is the condition of the ConfigMaps.
func (s *summary) configMapsSynced() metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionConfigMapsSynced, Status: metav1.ConditionFalse}
	switch {
	case s.unread:
		c.Reason, c.Message = v1alpha1.ReasonProgressing, "this generation of the config has not been taken in yet"
	case s.problem != nil:
		c.Reason, c.Message = s.problem.Reason, s.problem.Message+"; pods keep the ConfigMaps they have"
	case s.failed > 0:
		c.Reason, c.Message = s.failures[0].Reason, s.failureMessage()
	case s.pending > 0:
		c.Reason = v1alpha1.ReasonProgressing
		c.Message = fmt.Sprintf("still working on %d of %s", s.pending, count(s.matched, "matching pod"))
	default:
		c.Status, c.Reason = metav1.ConditionTrue, v1alpha1.ReasonSynced
		c.Message = fmt.Sprintf("%s, each with its ConfigMap", count(s.matched, "matching pod"))
	}
	return c
}

func (s *summary) failureMessage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %s failed", s.failed, count(s.matched, "matching pod"))
	if s.pending > 0 {
		fmt.Fprintf(&b, ", still working on %d", s.pending)
	}
	for i, f := range s.failures {
		if i == namedFailures {
			fmt.Fprintf(&b, "; and %d more", s.failed-i)
			return b.String()
		}
		separator := ": "
		if i > 0 {
			separator = "; "
		}
		fmt.Fprintf(&b, "%spod %q: %s", separator, f.pod, f.Message)
	}
	if others := s.failed - len(s.failures); others > 0 {
		fmt.Fprintf(&b, "; and %d more for other reasons", others)
	}
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// ready is True when every other condition is True or was not asked for.
func ready(others ...metav1.Condition) metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonReady, Message: "every matching pod is served",
	}
	for _, other := range others {
		if other.Status != metav1.ConditionTrue && other.Reason != v1alpha1.ReasonNotRequested {
			c.Status, c.Reason = metav1.ConditionFalse, other.Reason
			c.Message = other.Type + ": " + other.Message
			return c
		}
	}
	return c
}

// statusOf computes the whole status from the summary and the condition of eBPF.
// It is pure, but for the transition times that a changed condition gets.
func statusOf(pcmc *v1alpha1.PodConfigMapConfig, s *summary, ebpf metav1.Condition, counts *v1alpha1.EBPFStatus) *v1alpha1.PodConfigMapConfigStatus {
	status := pcmc.Status.DeepCopy()
	status.MatchedPods = int32(s.matched)
	status.SyncedConfigMaps = int32(s.synced)
	status.FailedConfigMaps = int32(s.failed)
	status.EBPF = counts
	if !s.unfinished() {
		status.ObservedGeneration = pcmc.Generation
	}
	configMaps := s.configMapsSynced()
	for _, c := range []metav1.Condition{ready(configMaps, ebpf), configMaps, ebpf} {
		c.ObservedGeneration = pcmc.Generation
		c.Message = eventnote.Shorten(c.Message, maxMessage)
		meta.SetStatusCondition(&status.Conditions, c)
	}
	return status
}

// changed tells whether the status has to be written.
func changed(old, now *v1alpha1.PodConfigMapConfigStatus) bool {
	return !equality.Semantic.DeepEqual(old, now)
}
