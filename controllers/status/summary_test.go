// SPDX-License-Identifier: Apache-2.0

package status

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
)

const generation = 2

func config() *v1alpha1.PodConfigMapConfig {
	return &v1alpha1.PodConfigMapConfig{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "meta", UID: "uid", Generation: generation}}
}

// The fates of a pod.
var (
	unknown = (*ledger.Entry)(nil)
	synced  = &ledger.Entry{Generation: generation, Present: true}
	working = &ledger.Entry{Generation: generation - 1, Present: true}
)

func failed(reason string) *ledger.Entry {
	return &ledger.Entry{Generation: generation, Failure: &ledger.Failure{Reason: reason, Message: "because of " + reason}}
}

// book has an entry for each of the pods a, b, c, ….
func book(problem *ledger.Failure, entries ...*ledger.Entry) (*ledger.Ledger, []string) {
	l, pods := ledger.New(), []string{}
	l.Open("uid", types.NamespacedName{Namespace: "shop", Name: "meta"}, ledger.Head{Generation: generation, Problem: problem})
	for i, e := range entries {
		pods = append(pods, string(rune('a'+i)))
		if e != nil {
			l.Record("uid", pods[i], *e)
		}
	}
	return l, pods
}

func TestConfigMapsSynced(t *testing.T) {
	large, taken, invalid := failed(v1alpha1.ReasonTooLarge), failed(v1alpha1.ReasonNameConflict), failed(v1alpha1.ReasonTemplateInvalid)
	exhausted := failed(v1alpha1.ReasonRetriesExhausted)
	for name, tc := range map[string]struct {
		problem *ledger.Failure
		entries []*ledger.Entry

		counts   [5]int // matched, synced, failed, pending, present
		observed int64
		want     string // status, reason: message
	}{
		"no pods":  {counts: [5]int{}, observed: 2, want: "True Synced: 0 matching pods, each with its ConfigMap"},
		"one pod":  {entries: []*ledger.Entry{synced}, counts: [5]int{1, 1, 0, 0, 1}, observed: 2, want: "True Synced: 1 matching pod, each with its ConfigMap"},
		"two pods": {entries: []*ledger.Entry{synced, synced}, counts: [5]int{2, 2, 0, 0, 2}, observed: 2, want: "True Synced: 2 matching pods, each with its ConfigMap"},
		"one not looked at yet, one being worked on": {
			entries: []*ledger.Entry{synced, unknown, working}, counts: [5]int{3, 1, 0, 2, 2}, observed: 1,
			want: "False Progressing: still working on 2 of 3 matching pods",
		},
		"one bad pod among good ones freezes nothing": {
			entries: []*ledger.Entry{synced, large, synced}, counts: [5]int{3, 2, 1, 0, 2}, observed: 2,
			want: `False TooLarge: 1 of 3 matching pods failed: pod "b": because of TooLarge`,
		},
		"the only pod is bad": {
			entries: []*ledger.Entry{taken}, counts: [5]int{1, 0, 1, 0, 0}, observed: 2,
			want: `False NameConflict: 1 of 1 matching pod failed: pod "a": because of NameConflict`,
		},
		"bad ones and work": {
			entries: []*ledger.Entry{taken, unknown}, counts: [5]int{2, 0, 1, 1, 0}, observed: 1,
			want: `False NameConflict: 1 of 2 matching pods failed, still working on 1: pod "a": because of NameConflict`,
		},
		"the worst reason is shown": {
			entries: []*ledger.Entry{taken, invalid, large, taken}, counts: [5]int{4, 0, 4, 0, 0}, observed: 2,
			want: `False TooLarge: 4 of 4 matching pods failed: pod "c": because of TooLarge; and 3 more for other reasons`,
		},
		"exhausted retries are the worst": {
			entries: []*ledger.Entry{large, exhausted, invalid}, counts: [5]int{3, 0, 3, 0, 0}, observed: 2,
			want: `False RetriesExhausted: 3 of 3 matching pods failed: pod "b": because of RetriesExhausted; and 2 more for other reasons`,
		},
		"a broken template is worse than a taken name": {
			entries: []*ledger.Entry{taken, invalid}, counts: [5]int{2, 0, 2, 0, 0}, observed: 2,
			want: `False TemplateInvalid: 2 of 2 matching pods failed: pod "b": because of TemplateInvalid; and 1 more for other reasons`,
		},
		"three are named": {
			entries: []*ledger.Entry{taken, taken, taken}, counts: [5]int{3, 0, 3, 0, 0}, observed: 2,
			want: `False NameConflict: 3 of 3 matching pods failed: pod "a": because of NameConflict; pod "b": because of NameConflict; pod "c": because of NameConflict`,
		},
		"no more than three are named": {
			entries: []*ledger.Entry{taken, taken, taken, taken, taken}, counts: [5]int{5, 0, 5, 0, 0}, observed: 2,
			want: `False NameConflict: 5 of 5 matching pods failed: pod "a": because of NameConflict; pod "b": because of NameConflict; pod "c": because of NameConflict; and 2 more`,
		},
		"the config's own problem, without pods": {
			problem: &ledger.Failure{Reason: v1alpha1.ReasonTemplateInvalid, Message: "it does not parse"}, observed: 2,
			want: "False TemplateInvalid: it does not parse; pods keep the ConfigMaps they have",
		},
		"the config's own problem, with pods": {
			problem: &ledger.Failure{Reason: v1alpha1.ReasonTemplateInvalid, Message: "it does not parse"},
			entries: []*ledger.Entry{invalid, unknown}, counts: [5]int{2, 0, 1, 1, 0}, observed: 1,
			want: "False TemplateInvalid: it does not parse; pods keep the ConfigMaps they have",
		},
		"a last good ConfigMap is present": {
			entries: []*ledger.Entry{{Generation: generation, Present: true, Failure: invalid.Failure}}, counts: [5]int{1, 0, 1, 0, 1}, observed: 2,
			want: `False TemplateInvalid: 1 of 1 matching pod failed: pod "a": because of TemplateInvalid`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, pods := book(tc.problem, tc.entries...)
			pcmc := config()
			pcmc.Status.ObservedGeneration = 1
			s := summarize(l, l.Begin("uid"), pcmc, pods)
			if got := [5]int{s.matched, s.synced, s.failed, s.pending, s.present}; got != tc.counts {
				t.Errorf("counts %v, want %v", got, tc.counts)
			}
			status := statusWith(pcmc, &s, nil)
			if got := show(status, v1alpha1.ConditionConfigMapsSynced); got != tc.want {
				t.Errorf("condition\n%s, want\n%s", got, tc.want)
			}
			if status.ObservedGeneration != tc.observed {
				t.Errorf("observedGeneration %d, want %d", status.ObservedGeneration, tc.observed)
			}
			if got := [3]int32{status.MatchedPods, status.SyncedConfigMaps, status.FailedConfigMaps}; got != [3]int32{int32(tc.counts[0]), int32(tc.counts[1]), int32(tc.counts[2])} {
				t.Errorf("status counts %v of %v", got, tc.counts)
			}
			// Ready repeats what holds it back.
			want := "True Ready: every matching pod is served"
			if reason, held := strings.CutPrefix(tc.want, "False "); held {
				want = "False " + strings.Replace(reason, ": ", ": ConfigMapsSynced: ", 1)
			}
			if got := show(status, v1alpha1.ConditionReady); got != want {
				t.Errorf("Ready is\n%s, want\n%s", got, want)
			}
		})
	}
}

// TestUnreadGeneration: until a generation is taken in, nothing says that it is
// done, not even where no pod matches.
func TestUnreadGeneration(t *testing.T) {
	for name, head := range map[string]ledger.Head{
		"not open":              {},
		"the generation before": {Generation: generation - 1},
	} {
		pcmc := config()
		pcmc.Status.ObservedGeneration = 1
		s := summarize(ledger.New(), head, pcmc, nil)
		status := statusWith(pcmc, &s, nil)
		if got, want := show(status, v1alpha1.ConditionReady), "False Progressing: ConfigMapsSynced: this generation of the config has not been taken in yet"; got != want {
			t.Errorf("%s: Ready is\n%s, want\n%s", name, got, want)
		}
		if status.ObservedGeneration != 1 || !s.unfinished() {
			t.Errorf("%s: observedGeneration %d, unfinished %t", name, status.ObservedGeneration, s.unfinished())
		}
	}
}

// statusWith is the status where the flag is off, or with facts.
func statusWith(pcmc *v1alpha1.PodConfigMapConfig, s *summary, f *ebpfFacts) *v1alpha1.PodConfigMapConfigStatus {
	if f == nil {
		f = &ebpfFacts{}
	}
	ebpf, counts := ebpfReady(pcmc, f)
	return statusOf(pcmc, s, ebpf, counts)
}

func show(status *v1alpha1.PodConfigMapConfigStatus, condition string) string {
	c := meta.FindStatusCondition(status.Conditions, condition)
	if c == nil {
		return "none"
	}
	if c.ObservedGeneration != generation {
		return "of another generation"
	}
	return string(c.Status) + " " + c.Reason + ": " + c.Message
}

// TestReadyOrder: what is wrong with ConfigMaps is told before what is with eBPF.
func TestReadyOrder(t *testing.T) {
	pcmc := config()
	pcmc.Spec.EBPFConfig = &v1alpha1.EBPFConfig{SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true}}
	l, pods := book(nil, failed(v1alpha1.ReasonTooLarge))
	s := summarize(l, l.Begin("uid"), pcmc, pods)
	if got := show(statusWith(pcmc, &s, nil), v1alpha1.ConditionReady); !strings.HasPrefix(got, "False TooLarge: ConfigMapsSynced: 1 of 1") {
		t.Errorf("Ready is %s", got)
	}
}

func TestLongMessages(t *testing.T) {
	long := &ledger.Entry{Generation: generation, Failure: &ledger.Failure{Reason: v1alpha1.ReasonTooLarge, Message: strings.Repeat("é", 3000)}}
	l, pods := book(nil, long, long)
	s := summarize(l, l.Begin("uid"), config(), pods)
	message := meta.FindStatusCondition(statusWith(config(), &s, nil).Conditions, v1alpha1.ConditionConfigMapsSynced).Message
	if len(message) > maxMessage || !strings.HasSuffix(message, "é...") {
		t.Errorf("a message of %d bytes that ends in %q", len(message), message[len(message)-8:])
	}
}

// TestStatusIsStable: what is computed again from the same facts is no change,
// transition times included; and what it is computed from is left alone.
func TestStatusIsStable(t *testing.T) {
	l, pods := book(nil, synced, failed(v1alpha1.ReasonTooLarge))
	pcmc := config()
	s := summarize(l, l.Begin("uid"), pcmc, pods)
	first := statusWith(pcmc, &s, nil)
	if len(pcmc.Status.Conditions) > 0 || !changed(&pcmc.Status, first) {
		t.Errorf("the first status: %+v of %+v", first, pcmc.Status)
	}
	for i := range first.Conditions {
		first.Conditions[i].LastTransitionTime = metav1.NewTime(time.Unix(1000, 0))
	}
	pcmc.Status = *first
	if again := statusWith(pcmc, &s, nil); changed(&pcmc.Status, again) {
		t.Errorf("computed again it is\n%+v, was\n%+v", again, pcmc.Status)
	}
	l.Record("uid", "b", *synced)
	s = summarize(l, l.Begin("uid"), pcmc, pods)
	now := statusWith(pcmc, &s, nil)
	if !changed(&pcmc.Status, now) {
		t.Error("a repaired pod is no change")
	}
	for _, c := range now.Conditions {
		if moved := c.LastTransitionTime.Unix() != 1000; moved != (c.Type != v1alpha1.ConditionEBPFReady) {
			t.Errorf("%s: transition at %v", c.Type, c.LastTransitionTime)
		}
	}
}
