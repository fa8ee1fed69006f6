// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// existing returns the ConfigMap that the config wants for examplePod, changed
// as given.
func existing(t *testing.T, config *Config, change func(*corev1.ConfigMap)) *observed.ConfigMap {
	t.Helper()
	fine := *config
	fine.Problem, fine.templates = nil, nil
	cm, failure := New(observed.NewPod(examplePod()), &fine)
	if failure != nil {
		t.Fatal(failure)
	}
	cm.UID, cm.ResourceVersion = "cm-uid", "7"
	if change != nil {
		change(cm)
	}
	return observed.NewConfigMap(cm)
}

func TestPlanOfOneTarget(t *testing.T) {
	const taken = `ConfigMap "pod-web-0-from-meta-cfg" is needed for config "meta", but exists and was not made by this operator; delete or rename it`
	no, yes := false, true
	for name, tc := range map[string]struct {
		broken  bool // the config's template fails for the pod
		absent  bool // no ConfigMap is there
		change  func(*corev1.ConfigMap)
		foreign bool
		verb    verb
		waiting bool
		failure string // reason: message
	}{
		"nothing there":  {absent: true, verb: create},
		"as it should":   {verb: keep},
		"foreign labels": {change: func(cm *corev1.ConfigMap) { cm.Labels["theirs"], cm.Annotations = "x", map[string]string{"a": "b"} }, verb: keep},
		"not immutable":  {change: func(cm *corev1.ConfigMap) { cm.Immutable = &no }, verb: keep},

		"data edited":              {change: func(cm *corev1.ConfigMap) { cm.Data["phase"] = "Gone" }, verb: update},
		"key added":                {change: func(cm *corev1.ConfigMap) { cm.Data["extra"] = "" }, verb: update},
		"key removed":              {change: func(cm *corev1.ConfigMap) { delete(cm.Data, "phase") }, verb: update},
		"all data removed":         {change: func(cm *corev1.ConfigMap) { cm.Data = nil }, verb: update},
		"binary data added":        {change: func(cm *corev1.ConfigMap) { cm.BinaryData = map[string][]byte{"b": {1}} }, verb: update},
		"config's label changed":   {change: func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelGeneratedBy] = "other" }, verb: update},
		"config's label removed":   {change: func(cm *corev1.ConfigMap) { delete(cm.Labels, v1alpha1.LabelGeneratedBy) }, verb: update},
		"pod's label changed":      {change: func(cm *corev1.ConfigMap) { cm.Labels[v1alpha1.LabelPodUID] = "other" }, verb: update},
		"immutable, as it should":  {change: func(cm *corev1.ConfigMap) { cm.Immutable = &yes }, verb: replace},
		"immutable and edited":     {change: func(cm *corev1.ConfigMap) { cm.Immutable, cm.Data = &yes, nil }, verb: replace},
		"of an earlier such pod":   {change: func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].UID = "earlier" }, verb: replace},
		"being deleted":            {change: func(cm *corev1.ConfigMap) { cm.DeletionTimestamp = &metav1.Time{} }, verb: keep, waiting: true},
		"being deleted and edited": {change: func(cm *corev1.ConfigMap) { cm.DeletionTimestamp, cm.Data = &metav1.Time{}, nil }, verb: keep, waiting: true},

		"both labels removed, but written by us": {
			change: func(cm *corev1.ConfigMap) {
				cm.Labels, cm.ManagedFields = nil, []metav1.ManagedFieldsEntry{{Manager: "other"}, {Manager: observed.FieldManager}}
			},
			verb: update,
		},
		"both labels removed, written by others": {
			change: func(cm *corev1.ConfigMap) {
				cm.Labels, cm.ManagedFields = nil, []metav1.ManagedFieldsEntry{{Manager: "other"}}
			},
			verb: keep, failure: "NameConflict: " + taken,
		},
		"our labels without an owner":   {change: func(cm *corev1.ConfigMap) { cm.OwnerReferences = nil }, verb: keep, failure: "NameConflict: " + taken},
		"our labels, owned by no pod":   {change: func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].Kind = "Node" }, verb: keep, failure: "NameConflict: " + taken},
		"found taken a short while ago": {absent: true, foreign: true, verb: keep, failure: "NameConflict: " + taken},
		"ours for another pod": {
			change: func(cm *corev1.ConfigMap) {
				cm.OwnerReferences[0].Name, cm.OwnerReferences[0].UID, cm.Labels[v1alpha1.LabelGeneratedBy] = "web", "u2", "0-from-meta"
			},
			verb: keep,
			failure: `NameConflict: ConfigMap "pod-web-0-from-meta-cfg" is needed for config "meta", but belongs to pod "web" of config "0-from-meta"; ` +
				`rename the pod or the config, or wait until it is free`,
		},

		"broken, nothing there":         {broken: true, absent: true, verb: keep, failure: "TemplateInvalid: " + noZone},
		"broken, the last good stays":   {broken: true, verb: keep, failure: "TemplateInvalid: " + noZone},
		"broken, an edited one stays":   {broken: true, change: func(cm *corev1.ConfigMap) { cm.Data = nil }, verb: keep, failure: "TemplateInvalid: " + noZone},
		"broken, a foreign one matters": {broken: true, absent: true, foreign: true, verb: keep, failure: "NameConflict: " + taken},
	} {
		t.Run(name, func(t *testing.T) {
			spec := v1alpha1.PodConfigMapConfigSpec{LabelsToInclude: []v1alpha1.MetadataKey{"app"}}
			if tc.broken {
				spec.ConfigMapDataTemplate = map[string]string{"zone": "{{ .labels.zone }}"}
			}
			config := compiled(spec)
			seen := observation{pod: observed.NewPod(examplePod()), targets: []target{{config: config, name: "pod-web-0-from-meta-cfg", foreign: tc.foreign}}}
			if !tc.absent {
				seen.targets[0].holder = existing(t, config, tc.change)
				seen.owned = []*observed.ConfigMap{seen.targets[0].holder}
			}
			steps := makePlan(seen)
			if len(steps) != 1 {
				t.Fatalf("%d steps, want 1", len(steps))
			}
			s := steps[0]
			if s.verb != tc.verb || s.waiting != tc.waiting {
				t.Errorf("%s, waiting %t; want %s, %t", s.verb, s.waiting, tc.verb, tc.waiting)
			}
			failure := ""
			if s.failure != nil {
				failure = s.failure.Reason + ": " + s.failure.Message
			}
			if failure != tc.failure {
				t.Errorf("failure %q, want %q", failure, tc.failure)
			}
			if s.current != seen.targets[0].holder || s.config != config || s.name != "pod-web-0-from-meta-cfg" {
				t.Errorf("the step is about %+v", s)
			}
			if writes := s.verb == create || s.verb == update || s.verb == replace; writes && (s.data["podName"] != "web-0" || s.data["label_app"] != "web") {
				t.Errorf("data %v", s.data)
			}
		})
	}
}

const noZone = `spec.configMapDataTemplate: template "zone", line 1: at <.labels.zone>: map has no entry for key "zone"; read keys that may be absent with get and default`

// TestPlanRemoves lists what a pod owns and no config asks for.
func TestPlanRemoves(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(*corev1.ConfigMap)
		removed bool
	}{
		"ours":                    {func(*corev1.ConfigMap) {}, true},
		"immutable":               {func(cm *corev1.ConfigMap) { yes := true; cm.Immutable = &yes }, true},
		"edited":                  {func(cm *corev1.ConfigMap) { cm.Data = nil }, true},
		"being deleted already":   {func(cm *corev1.ConfigMap) { cm.DeletionTimestamp = &metav1.Time{} }, false},
		"of an earlier such pod":  {func(cm *corev1.ConfigMap) { cm.OwnerReferences[0].UID = "earlier" }, false},
		"owned, but not by us":    {func(cm *corev1.ConfigMap) { cm.Labels = nil }, false},
		"of a config that is new": {func(cm *corev1.ConfigMap) { cm.Name = "pod-web-0-from-meta-cfg" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			config := compiled(v1alpha1.PodConfigMapConfigSpec{})
			wanted := existing(t, config, nil)
			leftover := existing(t, config, func(cm *corev1.ConfigMap) {
				cm.Name, cm.UID = "pod-web-0-from-old-cfg", "old-uid"
				tc.change(cm)
			})
			steps := makePlan(observation{
				pod:     observed.NewPod(examplePod()),
				targets: []target{{config: config, name: wanted.Name, holder: wanted}},
				owned:   []*observed.ConfigMap{wanted, leftover},
			})
			if steps[0].verb != keep || steps[0].failure != nil {
				t.Errorf("what is wanted: %+v", steps[0])
			}
			if removed := len(steps) == 2; removed != tc.removed {
				t.Fatalf("%d steps; removed: %t, want %t", len(steps), removed, tc.removed)
			}
			if tc.removed && (steps[1].verb != remove || steps[1].current != leftover || steps[1].config != nil) {
				t.Errorf("step %+v", steps[1])
			}
		})
	}
}

// TestPlanOfSeveral has one config of each fate; one bad config holds up none.
func TestPlanOfSeveral(t *testing.T) {
	broken := compiled(v1alpha1.PodConfigMapConfigSpec{ConfigMapDataTemplate: map[string]string{"zone": "{{ .labels.zone }}"}})
	fine := compiled(v1alpha1.PodConfigMapConfigSpec{})
	edited := existing(t, fine, func(cm *corev1.ConfigMap) { cm.Name, cm.Data = "c", nil })
	old := existing(t, fine, func(cm *corev1.ConfigMap) { cm.Name = "old" })
	steps := makePlan(observation{
		pod: observed.NewPod(examplePod()),
		targets: []target{
			{config: broken, name: "a"}, {config: fine, name: "b"}, {config: fine, name: "c", holder: edited}, {config: fine, name: "d", foreign: true},
		},
		owned: []*observed.ConfigMap{edited, old},
	})
	var got []string
	for _, s := range steps {
		got = append(got, fmt.Sprintf("%s %s %t", s.verb, s.name, s.failure != nil))
	}
	want := "keep a true, create b false, update c false, keep d true, remove old false"
	if strings.Join(got, ", ") != want {
		t.Errorf("planned %v, want %v", got, want)
	}
}
