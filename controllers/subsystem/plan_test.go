// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func wanted(t *testing.T, environ map[string]string) (*appsv1.DaemonSet, string) {
	t.Helper()
	all := map[string]string{"POD_NAMESPACE": "operators"}
	for name, value := range environ {
		all[name] = value
	}
	s, err := settings.Parse(all)
	if err != nil {
		t.Fatal(err)
	}
	owner := &metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "manager", UID: "d"}
	set := standard.desired(identity{image: "image", owner: owner}, s, false)
	print, err := fingerprint(set)
	if err != nil {
		t.Fatal(err)
	}
	return set, print
}

func TestDecide(t *testing.T) {
	want, print := wanted(t, nil)
	foreign := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "theirs", UID: "c"}
	for name, tc := range map[string]struct {
		change func(*appsv1.DaemonSet)
		want   step
		check  func(*appsv1.DaemonSet) bool
	}{
		"as it should be":    {func(*appsv1.DaemonSet) {}, stepNone, nil},
		"a foreign label":    {func(s *appsv1.DaemonSet) { s.Labels["theirs"] = "x" }, stepNone, nil},
		"a foreign owner":    {func(s *appsv1.DaemonSet) { s.OwnerReferences = append(s.OwnerReferences, foreign) }, stepNone, nil},
		"it was edited":      {func(s *appsv1.DaemonSet) { s.Generation++ }, stepUpdate, func(s *appsv1.DaemonSet) bool { return strings.HasPrefix(s.Annotations[annotationApplied], "0 ") }},
		"it was never ours":  {func(s *appsv1.DaemonSet) { s.Labels, s.Annotations = nil, nil }, stepRefuse, nil},
		"it lost its memory": {func(s *appsv1.DaemonSet) { s.Annotations = nil }, stepUpdate, func(s *appsv1.DaemonSet) bool { return strings.HasPrefix(s.Annotations[annotationApplied], "0 ") }},
		"it lost its labels": {func(s *appsv1.DaemonSet) { s.Labels = nil }, stepTouch, func(s *appsv1.DaemonSet) bool { return s.Labels[labelComponent] == component }},
		"it lost its owner":  {func(s *appsv1.DaemonSet) { s.OwnerReferences = nil }, stepTouch, func(s *appsv1.DaemonSet) bool { return len(s.OwnerReferences) == 1 }},
		"a Deployment before": {func(s *appsv1.DaemonSet) {
			s.OwnerReferences[0].UID = "old"
			s.OwnerReferences = append(s.OwnerReferences, foreign)
		}, stepTouch, func(s *appsv1.DaemonSet) bool { return len(s.OwnerReferences) == 2 && s.OwnerReferences[1].UID == "d" }},
		"it is going": {func(s *appsv1.DaemonSet) { s.DeletionTimestamp = &metav1.Time{Time: noon}; s.Generation++ }, stepWait, nil},
		"it cleans up": {func(s *appsv1.DaemonSet) { s.Generation++; s.Annotations[annotationCleanupSince] = "now" }, stepUpdate, func(s *appsv1.DaemonSet) bool {
			return s.Annotations[annotationCleanupSince] == "" && s.Annotations[annotationAppliedAt] == "2026-01-01T12:00:00Z"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, live := decide(nil, want, print, noon.Add(-time.Hour))
			live.Generation = 1
			tc.change(live)
			got, set := decide(live, want, print, noon)
			if got != tc.want || tc.check != nil && !tc.check(set) {
				t.Errorf("step %d, want %d: %+v", got, tc.want, set)
			}
			if got == stepUpdate && len(set.Spec.Template.Spec.Containers) != 1 {
				t.Errorf("no spec is written: %+v", set.Spec)
			}
		})
	}
	if does, set := decide(nil, want, print, noon); does != stepCreate || set.Annotations[annotationApplied] != applied(1, print) {
		t.Errorf("nothing there: step %d, %+v", does, set)
	}
}

// TestFingerprint: it is another for each setting that matters to agents, and
// only then.
func TestFingerprint(t *testing.T) {
	_, print := wanted(t, nil)
	if _, again := wanted(t, map[string]string{"CONTROLLER_POD_WORKERS": "7", "AGENT_LEGACY_KERNELS": "true"}); again != print {
		t.Error("it is another for settings of the manager's own")
	}
	for name, value := range map[string]string{
		"AGENT_TOLERATIONS": "[]", "AGENT_NODE_SELECTOR": "a=b", "AGENT_RESOURCES": "{}", "AGENT_SECCOMP_PROFILE": "RuntimeDefault", "AGENT_PRIORITY_CLASS": "x", "WATCH_NAMESPACE": "a,b",
		"LOG_LEVEL": "debug", "LOG_FORMAT": "json", "LOG_JSON_FORMAT": "true", "DEBUG": "true", "CONTROLLER_RESYNC_PERIOD": "1h",
	} {
		if _, other := wanted(t, map[string]string{name: value}); other == print {
			t.Errorf("it is the same with %s=%s", name, value)
		}
	}
}

func TestRefusal(t *testing.T) {
	const podSecurity = `Error creating: pods "podconfigmap-controller-agent-x7k2p" is forbidden: violates PodSecurity "restricted:latest": host path volumes`
	event := func(age time.Duration, change func(*corev1.Event)) corev1.Event {
		e := corev1.Event{Reason: reasonFailedCreate, Message: podSecurity, InvolvedObject: corev1.ObjectReference{UID: "u"}, LastTimestamp: metav1.Time{Time: noon.Add(-age)}}
		change(&e)
		return e
	}
	same := func(*corev1.Event) {}
	missing := appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 2, CurrentNumberScheduled: 1}
	for name, tc := range map[string]struct {
		status appsv1.DaemonSetStatus
		events []corev1.Event
		want   string
	}{
		"no Events":               {missing, nil, ""},
		"refused":                 {missing, []corev1.Event{event(time.Second, same)}, `violates PodSecurity "restricted:latest": host path volumes`},
		"all pods are there":      {appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 2, CurrentNumberScheduled: 2}, []corev1.Event{event(time.Second, same)}, ""},
		"none are wanted":         {appsv1.DaemonSetStatus{ObservedGeneration: 1}, []corev1.Event{event(time.Second, same)}, ""},
		"an old status":           {appsv1.DaemonSetStatus{}, []corev1.Event{event(time.Second, same)}, `violates PodSecurity "restricted:latest": host path volumes`},
		"long ago":                {missing, []corev1.Event{event(time.Hour, same)}, ""},
		"of the DaemonSet before": {missing, []corev1.Event{event(time.Second, func(e *corev1.Event) { e.InvolvedObject.UID = "before" })}, ""},
		"another reason":          {missing, []corev1.Event{event(time.Second, func(e *corev1.Event) { e.Reason = "FailedDelete" })}, ""},
		"a passing failure":       {missing, []corev1.Event{event(time.Second, func(e *corev1.Event) { e.Message = "Error creating: etcdserver: request timed out" })}, ""},
		"the last one counts":     {missing, []corev1.Event{event(time.Second, func(e *corev1.Event) { e.Message = `Error creating: admission webhook "w" denied the request: no` }), event(time.Minute, same)}, `admission webhook "w" denied the request: no`},
		"a series tells its latest": {missing, []corev1.Event{event(time.Hour, func(e *corev1.Event) {
			e.Series = &corev1.EventSeries{LastObservedTime: metav1.MicroTime{Time: noon.Add(-time.Second)}}
		})}, `violates PodSecurity "restricted:latest": host path volumes`},
	} {
		t.Run(name, func(t *testing.T) {
			set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{UID: "u", Generation: 1}, Status: tc.status}
			if got := refusal(set, tc.events, noon); got != tc.want {
				t.Errorf("refusal %q, want %q", got, tc.want)
			}
		})
	}
}

func TestNotAdmitted(t *testing.T) {
	for answer, want := range map[string]string{
		`violates PodSecurity "baseline:latest": hostPath`:                  "run: kubectl label namespace operators pod-security.kubernetes.io/enforce=privileged --overwrite; ",
		"unable to validate against any security context constraint: []":    "run: oc adm policy add-scc-to-user privileged -z podconfigmap-controller-agent -n operators; ",
		`exceeded quota: pods, requested: pods=1, used: pods=1, limited: 1`: "see the answer; ",
	} {
		if got := notAdmitted("operators", answer); !strings.Contains(got, want) || !strings.HasSuffix(got, answer) {
			t.Errorf("%s:\n%s, want %s", answer, got, want)
		}
	}
}

func TestRollingOut(t *testing.T) {
	done := appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 3, UpdatedNumberScheduled: 3, NumberAvailable: 3}
	for name, tc := range map[string]struct {
		change func(*appsv1.DaemonSetStatus)
		busy   bool
	}{
		"done":           {func(*appsv1.DaemonSetStatus) {}, false},
		"not begun":      {func(s *appsv1.DaemonSetStatus) { s.ObservedGeneration = 1 }, true},
		"an old pod":     {func(s *appsv1.DaemonSetStatus) { s.UpdatedNumberScheduled = 2 }, true},
		"a pod not well": {func(s *appsv1.DaemonSetStatus) { s.NumberAvailable = 2 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 2, Annotations: map[string]string{annotationAppliedAt: noon.Format(time.RFC3339)}}, Status: done}
			tc.change(&set.Status)
			if got := rollingOut(set); got.IsZero() == tc.busy || tc.busy && !got.Equal(noon.Add(10*time.Minute)) {
				t.Errorf("until %v", got)
			}
		})
	}
}

func TestAbsentMessage(t *testing.T) {
	var nodes []string
	for i := range 12 {
		nodes = append(nodes, string(rune('a'+i)))
	}
	if got := absentMessage("operators", nodes); !strings.Contains(got, "detached: a, b, c, d, e, f, g, h, i, j and 2 more. An agent") || !strings.Contains(got, "/sys/fs/bpf/podconfigmap/operators") {
		t.Error(got)
	}
}
