// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// spec is shorter.
type spec = v1alpha1.PodConfigMapConfigSpec

func selecting(key, value string) *v1alpha1.PodSelector {
	return &v1alpha1.PodSelector{MatchLabels: map[string]string{key: value}}
}

// TestContents compares whole ConfigMaps, with every kind of data key.
func TestContents(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	pod := s.pod("web", map[string]string{"app": "web", "app.kubernetes.io/name": "shop", "other": "left-out"}, func(p *corev1.Pod) {
		p.Spec.NodeName = "node-1"
		p.Annotations = map[string]string{"deployment.kubernetes.io/revision": "7", "argocd.argoproj.io/tracking-id": "x"}
	})
	s.config("plain", spec{})
	s.config("full", spec{
		PodSelector:           selecting("app", "web"),
		LabelsToInclude:       []v1alpha1.MetadataKey{"app", "app.kubernetes.io/name", "absent"},
		AnnotationsToInclude:  []v1alpha1.MetadataKey{"deployment.kubernetes.io/revision", "absent"},
		ConfigMapDataTemplate: map[string]string{"where.txt": `{{ .podName }} on {{ .nodeName | default "none" }}: {{ .labels.app | upper }}`},
		EBPFConfig: &v1alpha1.EBPFConfig{
			SyscallMonitoring: &v1alpha1.SyscallMonitoring{Enabled: true},
			L4Firewall:        &v1alpha1.L4Firewall{Enabled: true, DefaultAction: "block"},
			MetricsExport:     &v1alpha1.MetricsExport{},
		},
	})
	s.config("others", spec{PodSelector: selecting("app", "api")})
	s.expect("pod-web-from-plain-cfg", pod, s.data(pod, "plain", nil))
	s.expect("pod-web-from-full-cfg", pod, s.data(pod, "full", map[string]string{
		"label_app": "web", "label_app.kubernetes.io_name": "shop", "annotation_deployment.kubernetes.io_revision": "7",
		"where.txt": "web on node-1: WEB", "ebpf_enabled": "true", "ebpf_syscall_monitoring": "true", "ebpf_l4_firewall": "true",
		"ebpf_l4_firewall_default_action": "block", "ebpf_metrics_export": "false",
	}))
	s.expectServed("plain", 1)
	s.expectServed("others", 0)
	s.expectNames("pod-web-from-plain-cfg", "pod-web-from-full-cfg")
	for _, f := range s.get("pod-web-from-plain-cfg").ManagedFields {
		if f.Manager != "podconfigmap-controller" {
			t.Errorf("field manager %q", f.Manager)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	long, name := strings.Repeat("p", 251)+".0", strings.Repeat("c", 63)
	pods := map[string]*corev1.Pod{}
	for _, pod := range []string{"db.0.example", strings.Repeat("q", 240), long} {
		pods[pod] = s.pod(pod, nil)
	}
	s.config("m", spec{})
	s.config(name, spec{})
	for want, of := range map[string]struct{ pod, config string }{
		"pod-db.0.example-from-m-cfg":                           {"db.0.example", "m"},
		"pod-db.0.example-from-" + name + "-cfg":                {"db.0.example", name},
		"pod-" + strings.Repeat("q", 232) + "-14a2c268d6e3b1cb": {strings.Repeat("q", 240), "m"},
		"pod-" + strings.Repeat("q", 232) + "-53230227c506ba3d": {strings.Repeat("q", 240), name},
		"pod-" + strings.Repeat("p", 232) + "-45c3cf6587810313": {long, "m"},
		"pod-" + strings.Repeat("p", 232) + "-f37d1bed4ec6c0b9": {long, name},
	} {
		s.expect(want, pods[of.pod], s.data(pods[of.pod], of.config, nil))
	}
	s.expectServed(name, 3)
}

// TestFollowsPods has one pod come, change in all the ways that its data show,
// end, go and come again.
func TestFollowsPods(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	s.config("m", spec{PodSelector: selecting("app", "web"), LabelsToInclude: []v1alpha1.MetadataKey{"app", "tier"}})
	s.expectServed("m", 0)
	const name = "pod-web-from-m-cfg"
	pod := s.pod("web", map[string]string{"app": "web"})
	s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web"}))
	s.expectServed("m", 1)

	s.label("web", "tier", "front")
	s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web", "label_tier": "front"}))
	patch(s, &corev1.Pod{}, "web", func(p *corev1.Pod) { delete(p.Labels, "tier") })
	s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web"}))

	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "web"}, Target: corev1.ObjectReference{Kind: "Node", Name: "node-7"}}
	s.must(cluster.Client.SubResource("binding").Create(t.Context(), pod, binding))
	s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web", "nodeName": "node-7"}))

	for _, phase := range []corev1.PodPhase{corev1.PodUnknown, corev1.PodFailed, corev1.PodSucceeded} {
		s.setPhase("web", phase)
		s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web", "nodeName": "node-7", "phase": string(phase)}))
	}
	s.expectServed("m", 1) // a pod that has finished matches still

	s.label("web", "app", "api")
	s.expectNames()
	s.expectServed("m", 0)
	s.label("web", "app", "web")
	s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web", "nodeName": "node-7", "phase": "Succeeded"}))

	s.deletePod("web")
	s.expectNames()
	s.expectServed("m", 0)
	pod = s.pod("web", map[string]string{"app": "web"})
	s.expect(name, pod, s.data(pod, "m", map[string]string{"label_app": "web"}))
}

// TestRecreatedPods has pods come back at once under their names, as those of a
// StatefulSet do.
func TestRecreatedPods(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	s.config("m", spec{})
	const replicas = 10
	for i := range replicas {
		s.pod(fmt.Sprintf("db-%d", i), nil)
	}
	s.expectServed("m", replicas)
	for i := range replicas {
		name := fmt.Sprintf("db-%d", i)
		s.deletePod(name)
		s.pod(name, nil)
	}
	for _, pod := range s.pods() {
		s.expect("pod-"+pod.Name+"-from-m-cfg", &pod, s.data(&pod, "m", nil))
	}
	s.expectServed("m", replicas)
}

// TestFollowsConfigs has configs come, change and go.
func TestFollowsConfigs(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	a, b := s.pod("a", map[string]string{"app": "x", "tier": "front"}), s.pod("b", map[string]string{"app": "y"})
	s.expectNames()
	s.config("one", spec{})
	s.config("two", spec{PodSelector: selecting("app", "x")})
	s.expectNames("pod-a-from-one-cfg", "pod-b-from-one-cfg", "pod-a-from-two-cfg")

	s.respec("one", func(c *spec) { c.LabelsToInclude = []v1alpha1.MetadataKey{"app"} })
	s.expect("pod-a-from-one-cfg", a, s.data(a, "one", map[string]string{"label_app": "x"}))
	s.expect("pod-b-from-one-cfg", b, s.data(b, "one", map[string]string{"label_app": "y"}))
	s.expect("pod-a-from-two-cfg", a, s.data(a, "two", nil))
	s.expectServed("one", 2)
	if c, _ := s.status("one", v1alpha1.ConditionReady); c.Status.ObservedGeneration != 2 {
		t.Errorf("observedGeneration %d, want 2", c.Status.ObservedGeneration)
	}
	s.respec("one", func(c *spec) {
		c.LabelsToInclude, c.ConfigMapDataTemplate = nil, map[string]string{"who": "{{ .podName }}!"}
	})
	s.expect("pod-b-from-one-cfg", b, s.data(b, "one", map[string]string{"who": "b!"}))

	s.respec("two", func(c *spec) { c.PodSelector = selecting("app", "y") })
	s.expectNames("pod-a-from-one-cfg", "pod-b-from-one-cfg", "pod-b-from-two-cfg")
	s.expect("pod-b-from-two-cfg", b, s.data(b, "two", nil))
	s.respec("two", func(c *spec) {
		c.PodSelector = &v1alpha1.PodSelector{MatchExpressions: []v1alpha1.PodSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpExists}}}
	})
	s.expectNames("pod-a-from-one-cfg", "pod-b-from-one-cfg", "pod-a-from-two-cfg")

	s.removeConfig("one")
	s.expectNames("pod-a-from-two-cfg")
	s.config("one", spec{})
	s.expect("pod-b-from-one-cfg", b, s.data(b, "one", nil))
	s.removeConfig("two")
	s.removeConfig("one")
	s.expectNames()
}

func TestNamespacesAreIsolated(t *testing.T) {
	t.Parallel()
	here, there := inShared(t), inShared(t)
	pods := map[*space]*corev1.Pod{here: here.pod("web", nil), there: there.pod("web", nil)}
	here.config("m", spec{})
	here.expect("pod-web-from-m-cfg", pods[here], here.data(pods[here], "m", nil))
	here.expectServed("m", 1)
	there.steadily("a config of another namespace does nothing here", time.Second, there.checkNames())
	there.config("m", spec{LabelsToInclude: []v1alpha1.MetadataKey{"app"}})
	there.expect("pod-web-from-m-cfg", pods[there], there.data(pods[there], "m", nil))
	here.removeConfig("m")
	here.expectNames()
	there.expectNames("pod-web-from-m-cfg")
}

// TestDrift undoes each thing that somebody may do to a ConfigMap.
func TestDrift(t *testing.T) {
	t.Parallel()
	parent := inShared(t)
	parent.config("m", spec{LabelsToInclude: []v1alpha1.MetadataKey{"app"}})
	yes := true
	for name, tc := range map[string]struct {
		change   func(*corev1.ConfigMap)
		replaced bool // by another object
	}{
		"data-edited":        {change: func(cm *corev1.ConfigMap) { cm.Data["phase"] = "Gone" }},
		"key-added":          {change: func(cm *corev1.ConfigMap) { cm.Data["extra"] = "x" }},
		"key-removed":        {change: func(cm *corev1.ConfigMap) { delete(cm.Data, "label_app") }},
		"data-removed":       {change: func(cm *corev1.ConfigMap) { cm.Data = nil }},
		"binary-data-added":  {change: func(cm *corev1.ConfigMap) { cm.BinaryData = map[string][]byte{"b": {1}} }},
		"config-label-gone":  {change: func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelGeneratedBy) }},
		"pod-label-gone":     {change: func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelPodUID) }},
		"all-labels-gone":    {change: func(cm *corev1.ConfigMap) { cm.Labels = nil }},
		"labels-gone-edited": {change: func(cm *corev1.ConfigMap) { cm.Labels, cm.Data = nil, nil }},
		"config-label-other": {change: func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelGeneratedBy] = "other" }},
		"pod-label-other":    {change: func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelPodUID] = "other" }},
		"immutable":          {change: func(cm *corev1.ConfigMap) { cm.Immutable = &yes }, replaced: true},
		"immutable-edited":   {change: func(cm *corev1.ConfigMap) { cm.Immutable, cm.Data = &yes, nil }, replaced: true},
		"immutable-unseen":   {change: func(cm *corev1.ConfigMap) { cm.Immutable, cm.Labels = &yes, nil }, replaced: true},
		"deleted":            {replaced: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := parent.in(t)
			pod, cm := s.pod(name, map[string]string{"app": "web"}), "pod-"+name+"-from-m-cfg"
			want := s.data(pod, "m", map[string]string{"label_app": "web"})
			s.expect(cm, pod, want)
			uid := s.get(cm).UID
			if tc.change == nil {
				s.removeConfigMap(cm)
			} else {
				patch(s, &corev1.ConfigMap{}, cm, tc.change)
			}
			s.expect(cm, pod, want)
			if replaced := s.get(cm).UID != uid; replaced != tc.replaced {
				t.Errorf("replaced: %t, want %t", replaced, tc.replaced)
			}
		})
	}
}

// TestForeignMetadataStays: what others hang on our ConfigMaps survives our
// writes, and causes none.
func TestForeignMetadataStays(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	s.pod("web", map[string]string{"app": "web"})
	s.config("m", spec{LabelsToInclude: []v1alpha1.MetadataKey{"app"}})
	const name = "pod-web-from-m-cfg"
	s.expectNames(name)
	hang := func(cm *corev1.ConfigMap) {
		cm.Labels["theirs"], cm.Annotations, cm.Finalizers = "x", map[string]string{"theirs": "y"}, []string{"example.com/theirs"}
		cm.OwnerReferences = append(cm.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "second", UID: "second"})
	}
	second := s.pod("second", nil)
	patch(s, &corev1.ConfigMap{}, name, func(cm *corev1.ConfigMap) {
		hang(cm)
		cm.OwnerReferences[1].UID = second.UID
	})
	version := s.get(name).ResourceVersion
	s.steadily("nothing of it is undone", time.Second, func() error {
		if now := s.get(name).ResourceVersion; now != version {
			return fmt.Errorf("resource version %s, was %s", now, version)
		}
		return nil
	})
	s.label("web", "app", "api")
	s.eventually("an update", func() error {
		cm := s.get(name)
		if cm.Data["label_app"] != "api" {
			return fmt.Errorf("data %v", cm.Data)
		}
		if cm.Labels["theirs"] != "x" || cm.Annotations["theirs"] != "y" || len(cm.Finalizers) != 1 || len(cm.OwnerReferences) != 2 {
			t.Errorf("left of theirs: %v", cm.ObjectMeta)
		}
		return nil
	})
	// Deleted, it stays until their finalizer is gone; then it comes back.
	s.removeConfigMap(name)
	s.eventually("the config says that it waits", func() error {
		return s.checkCondition("m", v1alpha1.ConditionConfigMapsSynced, "False Progressing: still working on 1 of 2 matching pods")
	})
	patch(s, &corev1.ConfigMap{}, name, func(cm *corev1.ConfigMap) { cm.Finalizers = nil })
	s.expectServed("m", 2)
	if cm := s.get(name); len(cm.Annotations) > 0 {
		t.Errorf("the new one has the annotations %v", cm.Annotations)
	}
}

const taken = `ConfigMap "pod-web-from-m-cfg" is needed for config "m", but exists and was not made by this operator; delete or rename it`

// TestForeignInTheWay: a ConfigMap that is not ours is left alone and told of;
// when it goes, its name is taken.
func TestForeignInTheWay(t *testing.T) {
	t.Parallel()
	for name, foreign := range map[string]*corev1.ConfigMap{
		"bare":       {Data: map[string]string{"theirs": "x"}},
		"our labels": {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelGeneratedBy: "m", v1alpha1.LabelPodUID: "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := inShared(t)
			foreign.Namespace, foreign.Name = s.name, "pod-web-from-m-cfg"
			s.must(cluster.Client.Create(t.Context(), foreign))
			pod, other := s.pod("web", nil), s.pod("other", nil)
			s.config("m", spec{})
			s.expect("pod-other-from-m-cfg", other, s.data(other, "m", nil))
			s.expectCondition("m", v1alpha1.ConditionConfigMapsSynced, `False NameConflict: 1 of 2 matching pods failed: pod "web": `+taken)
			s.expectCondition("m", v1alpha1.ConditionReady, `False NameConflict: ConfigMapsSynced: 1 of 2 matching pods failed: pod "web": `+taken)
			s.expectEvent("Warning NameConflict Pod/web: " + taken)
			s.expectEvent(`Warning NameConflict PodConfigMapConfig/m: 1 of 2 matching pods failed: pod "web": ` + taken)
			if c, _ := s.status("m", ""); c.Status.MatchedPods != 2 || c.Status.SyncedConfigMaps != 1 || c.Status.FailedConfigMaps != 1 {
				t.Errorf("status %+v", c.Status)
			}
			// Only time, not each event of the pod, makes the operator ask again.
			tries := func() (times []time.Time) {
				for _, c := range s.calls(t, time.Time{}) {
					if c.is("create", "configmaps") && c.ObjectRef.Namespace == s.name && c.ObjectRef.Name == "pod-web-from-m-cfg" {
						times = append(times, c.Received)
					}
				}
				return times
			}
			s.label("web", "app", "web")
			if visible := foreign.Labels != nil; visible {
				s.steadily("what the caches show is not asked for", 500*time.Millisecond, func() error {
					if n := len(tries()); n > 0 {
						return fmt.Errorf("%d tries", n)
					}
					return nil
				})
			} else {
				s.eventually("a second look", func() error {
					if n := len(tries()); n < 2 {
						return fmt.Errorf("%d tries", n)
					}
					return nil
				})
				if all := tries(); all[1].Sub(all[0]) < time.Second {
					t.Errorf("tries at %v", all)
				}
			}
			now := &corev1.ConfigMap{}
			s.must(cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(foreign), now))
			if now.ResourceVersion != foreign.ResourceVersion {
				t.Errorf("it was touched: %+v", now)
			}
			s.removeConfigMap(foreign.Name)
			s.expect(foreign.Name, pod, s.data(pod, "m", nil))
			s.expectServed("m", 2)
		})
	}
}

// TestOwnerTakenAway: what no longer names its pod as owner is not ours.
func TestOwnerTakenAway(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	pod := s.pod("web", nil)
	s.config("m", spec{})
	s.expectServed("m", 1)
	const name = "pod-web-from-m-cfg"
	patch(s, &corev1.ConfigMap{}, name, func(cm *corev1.ConfigMap) { cm.OwnerReferences = nil })
	s.expectCondition("m", v1alpha1.ConditionConfigMapsSynced, `False NameConflict: 1 of 1 matching pod failed: pod "web": `+taken)
	s.removeConfigMap(name)
	s.expect(name, pod, s.data(pod, "m", nil))
}

// TestNamesThatCollide has two pairs of pod and config that need one name.
func TestNamesThatCollide(t *testing.T) {
	t.Parallel()
	const name = "pod-a-from-b-from-c-cfg"
	told := func(config, holder, of string) string {
		return fmt.Sprintf("ConfigMap %q is needed for config %q, but belongs to pod %q of config %q; rename the pod or the config, or wait until it is free",
			name, config, holder, of)
	}
	prepared := func(t *testing.T) (s *space, second *corev1.Pod) {
		t.Helper()
		s = inShared(t)
		first := s.pod("a-from-b", map[string]string{"which": "first"})
		s.config("c", spec{PodSelector: selecting("which", "first")})
		s.expect(name, first, s.data(first, "c", nil))
		uid := s.get(name).UID
		second = s.pod("a", map[string]string{"which": "second"})
		s.config("b-from-c", spec{PodSelector: selecting("which", "second")})
		s.expectCondition("b-from-c", v1alpha1.ConditionConfigMapsSynced,
			`False NameConflict: 1 of 1 matching pod failed: pod "a": `+told("b-from-c", "a-from-b", "c"))
		s.expectEvent("Warning NameConflict Pod/a: " + told("b-from-c", "a-from-b", "c"))
		s.must(s.check(name, first, s.data(first, "c", nil)))
		s.expectServed("c", 1)
		if s.get(name).UID != uid {
			t.Error("the first one lost its ConfigMap for a while")
		}
		return s, second
	}
	free := map[string]func(*space){
		"the pod goes":              func(s *space) { s.deletePod("a-from-b") },
		"the config goes":           func(s *space) { s.removeConfig("c") },
		"the pod no longer matches": func(s *space) { s.label("a-from-b", "which", "none") },
	}
	for how, freeUp := range free {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s, second := prepared(t)
			freeUp(s)
			s.expect(name, second, s.data(second, "b-from-c", nil))
			s.expectServed("b-from-c", 1)
		})
	}
	t.Run("the second gives up", func(t *testing.T) {
		t.Parallel()
		s, _ := prepared(t)
		s.removeConfig("b-from-c")
		s.steadily("the first one keeps it", time.Second, s.checkNames(name))
		s.expectServed("c", 1)
	})
}

// TestUpdatesAreConditional: an answer to an old state never lands on a new one.
func TestUpdatesAreConditional(t *testing.T) {
	t.Parallel()
	s := inShared(t)
	s.config("m", spec{LabelsToInclude: []v1alpha1.MetadataKey{"n"}})
	pod := s.pod("web", map[string]string{"n": "0"})
	s.expectNames("pod-web-from-m-cfg")
	// Somebody edits while the operator writes, many times.
	for i := range 40 {
		s.label("web", "n", fmt.Sprint(i))
		body := fmt.Sprintf(`{"data":{"theirs":"%d"},"metadata":{"labels":{"theirs":"%d"}}}`, i, i)
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "pod-web-from-m-cfg"}}
		s.must(cluster.Client.Patch(t.Context(), cm, client.RawPatch(types.MergePatchType, []byte(body))))
	}
	s.eventually("the data are ours, the label theirs", func() error {
		cm := s.get("pod-web-from-m-cfg")
		if cm.Labels["theirs"] != "39" || len(cm.Labels) != 3 {
			return fmt.Errorf("labels %v", cm.Labels)
		}
		if want := s.data(pod, "m", map[string]string{"label_n": "39"}); !maps.Equal(cm.Data, want) {
			return fmt.Errorf("data %v, want %v", cm.Data, want)
		}
		return nil
	})
}
