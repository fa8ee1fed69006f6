// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"fmt"
	"strings"
	"testing"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// realistic returns a pod with 8 labels and 6 annotations, one of them of
// 2 KiB, and a config that includes them and has two templates.
func realistic() (*observed.Pod, *Config) {
	pod, spec := examplePod(), v1alpha1.PodConfigMapConfigSpec{
		PodSelector: &v1alpha1.PodSelector{MatchLabels: map[string]string{"example.com/label-0": "value-0"}},
		ConfigMapDataTemplate: map[string]string{
			"where": "{{ .podName }} on {{ .nodeName }}",
			"tier":  `{{ get .labels "tier" | default "none" | upper }}`,
		},
	}
	for i := range 8 {
		key := fmt.Sprintf("example.com/label-%d", i)
		pod.Labels[key] = fmt.Sprintf("value-%d", i)
		spec.LabelsToInclude = append(spec.LabelsToInclude, v1alpha1.MetadataKey(key))
	}
	for i := range 6 {
		key := fmt.Sprintf("example.com/annotation-%d", i)
		pod.Annotations[key] = strings.Repeat("v", 32)
		spec.AnnotationsToInclude = append(spec.AnnotationsToInclude, v1alpha1.MetadataKey(key))
	}
	pod.Annotations["example.com/annotation-0"] = strings.Repeat("v", 2<<10)
	return observed.NewPod(pod), compiled(spec)
}

func BenchmarkRender(b *testing.B) {
	pod, config := realistic()
	b.ReportAllocs()
	for b.Loop() {
		if _, failure := config.Render(pod); failure != nil {
			b.Fatal(failure)
		}
	}
}

// BenchmarkPlan plans for a pod with two configs whose ConfigMaps are right
// already, as a resync does.
func BenchmarkPlan(b *testing.B) {
	pod, config := realistic()
	second := *config
	second.Name = "second"
	seen := observation{pod: pod}
	for _, c := range []*Config{config, &second} {
		cm, failure := New(pod, c)
		if failure != nil {
			b.Fatal(failure)
		}
		held := observed.NewConfigMap(cm)
		seen.owned = append(seen.owned, held)
		seen.targets = append(seen.targets, target{config: c, name: cm.Name, holder: held})
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, s := range makePlan(seen) {
			if s.verb != keep {
				b.Fatalf("%s of %q", s.verb, s.name)
			}
		}
	}
}
