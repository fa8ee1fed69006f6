// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// rightState has two pods; one config selects both, the other one of them.
func rightState() *State {
	s := &State{}
	for _, name := range []string{"a", "b"} {
		pod := corev1.Pod{}
		pod.Name, pod.Namespace, pod.UID, pod.Labels = name, "garden", "uid-"+types.UID(name), map[string]string{"app": name}
		s.Pods = append(s.Pods, pod)
	}
	for _, name := range []string{"all", "only"} {
		pcmc := v1alpha1.PodConfigMapConfig{}
		pcmc.Name, pcmc.Namespace, pcmc.UID, pcmc.Generation = name, "garden", "uid-"+types.UID(name), 3
		pcmc.Spec.LabelsToInclude = []v1alpha1.MetadataKey{"app"}
		pcmc.Status.ObservedGeneration, pcmc.Status.MatchedPods, pcmc.Status.SyncedConfigMaps = 3, 2, 2
		pcmc.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
		s.Configs = append(s.Configs, pcmc)
	}
	only := &s.Configs[1]
	only.Spec.PodSelector = &v1alpha1.PodSelector{MatchLabels: map[string]string{"app": "b"}}
	only.Status.MatchedPods, only.Status.SyncedConfigMaps = 1, 1
	for _, cm := range s.wanted() {
		s.ConfigMaps = append(s.ConfigMaps, *cm)
	}
	slices.SortFunc(s.ConfigMaps, func(a, b corev1.ConfigMap) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func TestDifferences(t *testing.T) {
	if s := rightState(); len(s.ConfigMaps) != 3 || s.ConfigMaps[0].Data["label_app"] != "a" {
		t.Fatalf("the right ConfigMaps: %v", s.ConfigMaps)
	}
	for name, tc := range map[string]struct {
		change func(*State)
		want   string // empty: no difference
	}{
		"right":            {func(*State) {}, ""},
		"missing":          {func(s *State) { s.ConfigMaps = s.ConfigMaps[1:] }, `ConfigMap "pod-a-from-all-cfg" is missing`},
		"of a pod gone":    {func(s *State) { s.Pods = s.Pods[1:] }, `ConfigMap "pod-a-from-all-cfg" (of config "all") should not exist`},
		"of a config gone": {func(s *State) { s.Configs = s.Configs[:1] }, `ConfigMap "pod-b-from-only-cfg" (of config "only") should not exist`},
		"of another pod":   {func(s *State) { s.Configs[1].Spec.PodSelector.MatchLabels["app"] = "c" }, "should not exist"},
		"old data":         {func(s *State) { s.Pods[0].Labels["app"] = "new" }, `ConfigMap "pod-a-from-all-cfg": data `},
		"one key more":     {func(s *State) { s.ConfigMaps[0].Data["more"] = "" }, "data "},
		"binary data":      {func(s *State) { s.ConfigMaps[0].BinaryData = map[string][]byte{"b": nil} }, "binary data "},
		"a label's value":  {func(s *State) { s.ConfigMaps[0].Labels[v1alpha1.LabelPodUID] = "other" }, "labels "},
		"a label missing":  {func(s *State) { delete(s.ConfigMaps[0].Labels, v1alpha1.LabelPodUID) }, "labels "},
		"an earlier pod's": {func(s *State) { s.ConfigMaps[0].OwnerReferences[0].UID = "earlier" }, "owners "},
		"no owner":         {func(s *State) { s.ConfigMaps[0].OwnerReferences = nil }, "owners "},
		"going":            {func(s *State) { s.ConfigMaps[0].DeletionTimestamp = &metav1.Time{} }, "deletion "},
		"a template that is wrong": {func(s *State) {
			s.Configs[0].Spec.ConfigMapDataTemplate = map[string]string{"x": "{{ .none }}"}
		}, "cannot be rendered"},
	} {
		t.Run(name, func(t *testing.T) {
			s := rightState()
			tc.change(s)
			got := strings.Join(s.Differences(), "\n")
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
				t.Errorf("differences %q, want %q", got, tc.want)
			}
		})
	}
}

func TestStatusDifferences(t *testing.T) {
	if all := rightState().StatusDifferences(); len(all) > 0 {
		t.Error(all)
	}
	for name, change := range map[string]func(*v1alpha1.PodConfigMapConfigStatus){
		"an old generation":   func(s *v1alpha1.PodConfigMapConfigStatus) { s.ObservedGeneration-- },
		"pods not matched":    func(s *v1alpha1.PodConfigMapConfigStatus) { s.MatchedPods-- },
		"too many ConfigMaps": func(s *v1alpha1.PodConfigMapConfigStatus) { s.SyncedConfigMaps++ },
		"a failure":           func(s *v1alpha1.PodConfigMapConfigStatus) { s.FailedConfigMaps++ },
		"not ready":           func(s *v1alpha1.PodConfigMapConfigStatus) { s.Conditions[0].Status = metav1.ConditionFalse },
		"no condition":        func(s *v1alpha1.PodConfigMapConfigStatus) { s.Conditions = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := rightState()
			change(&s.Configs[1].Status)
			if all := s.StatusDifferences(); len(all) != 1 || !strings.HasPrefix(all[0], `config "only": status `) {
				t.Errorf("differences %q", all)
			}
		})
	}
}
