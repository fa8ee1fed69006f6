// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// refuse has the API server refuse calls for ConfigMaps of the namespace: the
// CEL expression tells which of them are fine. It returns once that works; undo
// takes it back, and returns once that does.
func (s *space) refuse(operation admissionv1.OperationType, fine string) (undo func()) {
	s.t.Helper()
	policy := &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: s.name},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: s.name}},
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{operation},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
				}}},
			},
			Validations: []admissionv1.Validation{{Expression: fine + " && !(request.name == 'probe')", Message: "refused for a test"}},
		},
	}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: s.name},
		Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: s.name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}},
	}
	probe := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "probe"}}
	refused := func() bool {
		var err error
		if operation == admissionv1.Create {
			err = cluster.Client.Create(s.t.Context(), probe.DeepCopy(), client.DryRunAll)
		} else {
			err = cluster.Client.Delete(s.t.Context(), probe.DeepCopy(), client.DryRunAll)
		}
		return apierrors.IsInvalid(err) || apierrors.IsForbidden(err)
	}
	if operation == admissionv1.Delete {
		s.must(cluster.Client.Create(s.t.Context(), probe.DeepCopy()))
	}
	s.must(cluster.Client.Create(s.t.Context(), policy))
	s.must(cluster.Client.Create(s.t.Context(), binding))
	await := func(want bool) {
		s.t.Helper()
		s.eventually("the policy", func() error {
			if refused() != want {
				return fmt.Errorf("refuses: %t", !want)
			}
			return nil
		})
	}
	await(true)
	return func() {
		s.t.Helper()
		s.must(cluster.Client.Delete(s.t.Context(), binding))
		s.must(cluster.Client.Delete(s.t.Context(), policy))
		await(false)
	}
}

// TestRetriesExhausted: after CONTROLLER_MAX_RETRIES failures an Event and a
// condition, and tries at the resync period, one of which succeeds at last.
func TestRetriesExhausted(t *testing.T) {
	t.Parallel()
	s := own(t)
	undo := s.refuse(admissionv1.Create, "request.name != 'pod-bad-from-m-cfg'")
	s.watched(map[string]string{"CONTROLLER_MAX_RETRIES": "2", "CONTROLLER_RESYNC_PERIOD": "3s"})
	began := time.Now()
	bad, good := s.pod("bad", nil), s.pod("good", nil)
	s.config("m", spec{})
	s.expect("pod-good-from-m-cfg", good, s.data(good, "m", nil))
	const what = `creating ConfigMap "pod-bad-from-m-cfg" for pod "bad": configmaps "pod-bad-from-m-cfg" is forbidden: ` +
		`ValidatingAdmissionPolicy '%[1]s' with binding '%[1]s' denied request: refused for a test; gave up after 2 tries in a row, next try within 3s`
	failure := fmt.Sprintf(what, s.name)
	s.expectCondition("m", v1alpha1.ConditionConfigMapsSynced, `False RetriesExhausted: 1 of 2 matching pods failed: pod "bad": `+failure)
	s.expectEvent("Warning RetriesExhausted Pod/bad: " + failure)
	s.expectEvent(`Warning RetriesExhausted PodConfigMapConfig/m: 1 of 2 matching pods failed: pod "bad": ` + failure)
	if c, _ := s.status("m", ""); c.Status.ObservedGeneration != c.Generation || c.Status.FailedConfigMaps != 1 {
		t.Errorf("status %+v", c.Status)
	}
	time.Sleep(time.Until(began.Add(7 * time.Second)))
	var tries []time.Time
	for _, c := range s.calls(t, began) {
		if c.is("create", "configmaps") && c.ObjectRef.Name == "pod-bad-from-m-cfg" {
			tries = append(tries, c.Received)
		}
	}
	// Two at once, then one a resync period, and one more for each resync of the
	// pods' informer, which may fall between.
	if len(tries) < 3 || len(tries) > 7 {
		t.Errorf("%d tries in %v: %v", len(tries), time.Since(began), tries)
	}
	if gap := tries[1].Sub(tries[0]); gap < 100*time.Millisecond {
		t.Errorf("the first retry came after %v", gap)
	}
	s.eventually("each refused creation is counted", func() error {
		refused := 0.0
		for _, c := range s.calls(t, began) {
			if c.is("create", "configmaps") && c.ResponseStatus.Code >= 400 {
				refused++
			}
		}
		got, ns := s.scrape(t), "namespace="+s.name
		written, failed := got["configmap_operations_total{"+ns+",operation=create,result=error}"], got["reconciliation_errors_total{error_type=invalid,"+ns+",resource_type=pod}"]
		if written != refused || failed != refused {
			return fmt.Errorf("%v writes and %v errors are counted of %v", written, failed, refused)
		}
		return nil
	})
	if n := strings.Count(s.Log(), "Gave up on a pod for now"); n == 0 || n > len(tries)-1 {
		t.Errorf("%d reports of giving up after %d tries", n, len(tries))
	}
	undo()
	s.expect("pod-bad-from-m-cfg", bad, s.data(bad, "m", nil))
	s.expectServed("m", 2)
}

// TestRemovalRefused: a failing removal is told of, too, though no config asks
// for the ConfigMap any more.
func TestRemovalRefused(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(map[string]string{"CONTROLLER_MAX_RETRIES": "1", "CONTROLLER_RESYNC_PERIOD": "2s"})
	s.pod("web", nil)
	s.config("m", spec{})
	s.expectServed("m", 1)
	undo := s.refuse(admissionv1.Delete, "request.name != 'pod-web-from-m-cfg'")
	s.removeConfig("m")
	s.eventually("an Event", func() error {
		for _, e := range s.events() {
			if strings.HasPrefix(e, `Warning RetriesExhausted Pod/web: deleting ConfigMap "pod-web-from-m-cfg" of pod "web": `) {
				return nil
			}
		}
		return fmt.Errorf("there is none")
	})
	s.expectNames("pod-web-from-m-cfg", "probe")
	undo()
	s.expectNames("probe")
}

// TestOrphans: where garbage collection does not remove what a pod leaves
// behind, the operator does, after a while; and a new pod of that name takes
// its ConfigMap over at once.
func TestOrphans(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.refuse(admissionv1.Delete, "request.userInfo.username != 'system:serviceaccount:kube-system:generic-garbage-collector'")
	s.watched(nil)
	s.pod("gone", nil)
	s.pod("again", nil)
	s.config("m", spec{})
	s.expectServed("m", 2)
	earlier := s.get("pod-again-from-m-cfg").UID
	s.deletePod("gone")
	s.deletePod("again")
	left := time.Now()
	s.expectServed("m", 0)
	s.expectNames("pod-again-from-m-cfg", "pod-gone-from-m-cfg", "probe")
	again := s.pod("again", nil)
	s.expect("pod-again-from-m-cfg", again, s.data(again, "m", nil))
	if s.get("pod-again-from-m-cfg").UID == earlier {
		t.Error("the ConfigMap of the earlier pod was changed, not replaced")
	}
	s.stop(t)
	s.watched(nil)
	s.expectNames("pod-again-from-m-cfg", "probe")
	if waited := time.Since(left); waited < 30*time.Second {
		t.Errorf("removed after %v, before garbage collection had its 30 s", waited)
	}
}

// TestTemplateErrors: what does not parse or does not fit a pod is told, leaves
// the last good ConfigMap, and harms no other pod.
func TestTemplateErrors(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	with := func(template string) func(*spec) {
		return func(c *spec) { c.ConfigMapDataTemplate = map[string]string{"zone": template} }
	}
	const unparsed = `spec.configMapDataTemplate: template "zone", line 1: unclosed action; pods keep the ConfigMaps they have`
	s.config("m", spec{ConfigMapDataTemplate: map[string]string{"zone": "{{ .podName "}})
	s.expectCondition("m", v1alpha1.ConditionConfigMapsSynced, "False TemplateInvalid: "+unparsed)
	s.expectEvent("Warning TemplateInvalid PodConfigMapConfig/m: " + unparsed)
	c, _ := s.status("m", "")
	if c.Status.ObservedGeneration != 1 || c.Status.MatchedPods != 0 {
		t.Errorf("without pods: %+v", c.Status)
	}
	a, b := s.pod("a", map[string]string{"zone": "z1"}), s.pod("b", nil)
	s.eventually("the pods are counted", func() error {
		if c, _ = s.status("m", ""); c.Status.FailedConfigMaps != 2 {
			return fmt.Errorf("status %+v", c.Status)
		}
		return nil
	})
	s.must(s.checkNames()())

	s.respec("m", with("{{ get .labels \"zone\" }}"))
	s.expectServed("m", 2)
	s.expectEvent("Normal Synced PodConfigMapConfig/m: 2 matching pods, each with its ConfigMap")

	const unfit = `spec.configMapDataTemplate: template "zone", line 1: at <.labels.zone>: map has no entry for key "zone"; read keys that may be absent with get and default`
	s.respec("m", with("in {{ .labels.zone }}"))
	s.expect("pod-a-from-m-cfg", a, s.data(a, "m", map[string]string{"zone": "in z1"}))
	s.expectCondition("m", v1alpha1.ConditionConfigMapsSynced, `False TemplateInvalid: 1 of 2 matching pods failed: pod "b": `+unfit)
	s.expectEvent("Warning TemplateInvalid Pod/b: " + unfit)
	s.must(s.check("pod-b-from-m-cfg", b, s.data(b, "m", map[string]string{"zone": ""}))) // the last good one
	s.label("b", "zone", "z2")
	s.expect("pod-b-from-m-cfg", b, s.data(b, "m", map[string]string{"zone": "in z2"}))
	s.expectServed("m", 2)

	s.respec("m", with("{{ if }}"))
	s.eventually("the new generation is told of", func() error {
		c, synced := s.status("m", v1alpha1.ConditionConfigMapsSynced)
		if synced.Reason != v1alpha1.ReasonTemplateInvalid || c.Status.ObservedGeneration != 4 || c.Status.FailedConfigMaps != 2 {
			return fmt.Errorf("status %+v", c.Status)
		}
		return nil
	})
	s.must(s.check("pod-a-from-m-cfg", a, s.data(a, "m", map[string]string{"zone": "in z1"})))
	s.label("a", "zone", "z9")
	s.steadily("the last good ones stay", 500*time.Millisecond, func() error {
		return s.check("pod-a-from-m-cfg", a, s.data(a, "m", map[string]string{"zone": "in z1"}))
	})
	// Pods that the config does not select any more lose theirs.
	s.respec("m", func(c *spec) { c.PodSelector = selecting("zone", "z2") })
	s.expectNames("pod-b-from-m-cfg")
}

// TestTooLarge: one pod's data exceed a ConfigMap; the others are served, and it
// is told which one is not.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	small := s.pod("small", nil, func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "x"} })
	large := s.pod("large", nil, func(p *corev1.Pod) { p.Annotations = map[string]string{"a": strings.Repeat("x", 200<<10)} })
	const repeated = "{{ range (list 1 2 3 4 5 6) }}{{ $.annotations.a }}{{ end }}"
	s.config("m", spec{ConfigMapDataTemplate: map[string]string{"sum": repeated}})
	s.expect("pod-small-from-m-cfg", small, s.data(small, "m", map[string]string{"sum": "xxxxxx"}))
	left := 1<<20 - len("largeRunningmfalse") - len(s.name)
	failure := fmt.Sprintf(`template "sum": its output is larger than the %d bytes left in the ConfigMap; write less; include fewer or smaller values in config "m"`, left)
	s.expectCondition("m", v1alpha1.ConditionConfigMapsSynced, `False TooLarge: 1 of 2 matching pods failed: pod "large": `+failure)
	s.expectEvent("Warning TooLarge Pod/large: " + failure)
	s.respec("m", func(c *spec) { c.ConfigMapDataTemplate["sum"] = strings.Replace(repeated, " 6", "", 1) })
	s.expect("pod-large-from-m-cfg", large, s.data(large, "m", map[string]string{"sum": strings.Repeat("x", 1000<<10)}))
	s.expectServed("m", 2)
}

// TestHostileTemplates: whatever users write, the manager lives, and serves
// others meanwhile.
func TestHostileTemplates(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(nil)
	s.pod("web", nil, func(p *corev1.Pod) { p.Annotations = map[string]string{"a": strings.Repeat("x", 100<<10)} })
	hostile := map[string]string{
		"loops":     `{{ range until 1000 }}{{ range until 1000 }}{{ range until 1000 }}x{{ end }}{{ end }}{{ end }}`,
		"repeats":   `{{ repeat 1000000000 "x" }}`,
		"doubles":   `{{ $s := .annotations.a }}{{ range until 40 }}{{ $s = printf "%s%s" $s $s }}{{ end }}{{ $s }}`,
		"width":     `{{ printf "%1000000000d" 1 }}`,
		"recursion": `{{ define "r" }}{{ template "r" }}{{ end }}{{ template "r" }}`,
		"environ":   `{{ env "HOME" }}`,
		"expands":   `{{ expandenv "$HOME" }}`,
		"files":     `{{ readFile "/etc/passwd" }}`,
		"network":   `{{ getHostByName "example.com" }}`,
		"forever":   `{{ range $i := until 2147483647 }}{{ $i }}{{ end }}`,
		"methods":   `{{ .labels.String }}`,
		"not-text":  `{{ b64dec "/w==" }}`,
	}
	for name, template := range hostile {
		s.config(name, spec{ConfigMapDataTemplate: map[string]string{"k": template}})
	}
	s.config("m", spec{})
	s.expectServed("m", 1)
	s.eventually("each is refused", func() error {
		for name := range hostile {
			if _, c := s.status(name, v1alpha1.ConditionConfigMapsSynced); c.Reason != v1alpha1.ReasonTemplateInvalid && c.Reason != v1alpha1.ReasonTooLarge {
				return fmt.Errorf("%s: %s %s", name, c.Reason, c.Message)
			}
		}
		return nil
	})
	s.expectNames("pod-web-from-m-cfg")
	s.label("web", "app", "web")
	s.respec("m", func(c *spec) { c.LabelsToInclude = []v1alpha1.MetadataKey{"app"} })
	s.expectServed("m", 1)
	if strings.Contains(s.Log(), "panic") {
		t.Errorf("the manager panicked:\n%s", s.LogTail(30))
	}
	s.expectNoErrors(t)
}

// TestNamespaceGoes: a namespace is deleted with all in it. That is no error,
// and its metrics end.
func TestNamespaceGoes(t *testing.T) {
	t.Parallel()
	s, stays := own(t), own(t)
	m := start(t, map[string]string{"WATCH_NAMESPACE": s.name + "," + stays.name})
	s.manager, stays.manager = m, m
	for _, in := range []*space{s, stays} {
		for i := range 10 {
			in.pod(fmt.Sprintf("web-%d", i), nil)
		}
		in.config("m", spec{})
		in.config("n", spec{})
		in.expectServed("m", 10)
		in.expectServed("n", 10)
	}
	if !slices.Contains(m.seriesNamespaces(t), s.name) {
		t.Fatal("the namespace has no metrics to begin with")
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}
	s.must(cluster.Client.Delete(t.Context(), namespace))
	s.eventually("the namespace goes", func() error {
		if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(namespace), namespace); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there, with status %v", namespace.Status)
		}
		return nil
	})
	s.eventually("its metrics end", func() error {
		if slices.Contains(m.seriesNamespaces(t), s.name) {
			return fmt.Errorf("there are some")
		}
		return nil
	})
	m.expectNoErrors(t)
	stays.expectServed("m", 10)
	if warned := strings.Count(m.Log(), "\nW"); warned > 0 {
		t.Errorf("%d warnings about a namespace that goes:\n%s", warned, m.LogTail(20))
	}
	// Events of pods that went may come late, and must not begin the series anew.
	s.steadily("they do not come back", 35*time.Second, func() error {
		if slices.Contains(m.seriesNamespaces(t), s.name) {
			return fmt.Errorf("they do")
		}
		time.Sleep(time.Second)
		return nil
	})
}
