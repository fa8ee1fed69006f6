// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

const prefix = "podconfigmap_controller_"

// scrape reads the operator's own metrics: "name{label=value,…}" → value. Of a
// histogram it is the number of observations.
func (m *manager) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := m.Scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for name, family := range families {
		name, ours := strings.CutPrefix(name, prefix)
		if !ours {
			continue
		}
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, l := range metric.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			all[name+"{"+strings.Join(labels, ",")+"}"] = metric.GetCounter().GetValue() + metric.GetGauge().GetValue() +
				float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// seriesNamespaces are the namespaces that any metric of the operator names.
func (m *manager) seriesNamespaces(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	for series := range m.scrape(t) {
		_, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
		for label := range strings.SplitSeq(labels, ",") {
			if namespace, ok := strings.CutPrefix(label, "namespace="); ok {
				found[namespace] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// expectMetrics waits until the operator's metrics are just these; a negative
// value stands for any above 0.
func (s *space) expectMetrics(when string, want map[string]float64) {
	s.t.Helper()
	s.eventually("metrics "+when, func() error {
		got := s.scrape(s.t)
		var wrong []string
		for series := range got {
			if _, known := want[series]; !known {
				wrong = append(wrong, fmt.Sprintf("%s %v, want none", series, got[series]))
			}
		}
		for series, value := range want {
			if is, there := got[series]; !there || value < 0 && is <= 0 || value >= 0 && is != value {
				wrong = append(wrong, fmt.Sprintf("%s %v (there: %t), want %v", series, is, there, value))
			}
		}
		if len(wrong) > 0 {
			slices.Sort(wrong)
			return fmt.Errorf("\n%s", strings.Join(wrong, "\n"))
		}
		return nil
	})
}

// TestMetrics compares every metric with the work that was done, and sees the
// series end.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := own(t)
	s.watched(nil)
	const many = -1
	ns := "namespace=" + s.name
	want := map[string]float64{"queue_depth{queue_name=pod}": 0, "queue_depth{queue_name=pcmc}": 0}
	s.expectMetrics("before any work", want)

	s.config("m", spec{PodSelector: selecting("app", "web"), LabelsToInclude: []v1alpha1.MetadataKey{"tier"}})
	s.pod("a", nil)
	s.pod("b", nil)
	s.pod("c", map[string]string{"zone": "z"})
	// The watch of pods brings this after all else about them: they are as they stay.
	for _, pod := range []string{"a", "b", "c"} {
		s.label(pod, "app", "web")
	}
	maps.Copy(want, map[string]float64{
		"configmap_operations_total{" + ns + ",operation=create,result=success}": 3,
		"reconciliation_duration_seconds{" + ns + ",resource_type=pod}":          many,
		"reconciliation_duration_seconds{" + ns + ",resource_type=pcmc}":         many,
		"pcmc_status{name=m," + ns + "}":                                         1,
		"active_configmaps{" + ns + ",pcmc_name=m}":                              3,
	})
	s.expectMetrics("after three creations", want)

	s.label("a", "tier", "x")
	s.label("b", "tier", "y")
	s.label("c", "app", "other")
	maps.Copy(want, map[string]float64{
		"configmap_operations_total{" + ns + ",operation=update,result=success}": 2,
		"configmap_operations_total{" + ns + ",operation=delete,result=success}": 1,
		"active_configmaps{" + ns + ",pcmc_name=m}":                              2,
	})
	s.expectMetrics("after two updates and a deletion", want)

	// One pod whose template fails, in a config of its own; c has what it needs.
	s.config("zone", spec{ConfigMapDataTemplate: map[string]string{"zone": "{{ .labels.zone }}"}, PodSelector: &v1alpha1.PodSelector{
		MatchExpressions: []v1alpha1.PodSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"y"}}},
	}})
	maps.Copy(want, map[string]float64{
		"configmap_operations_total{" + ns + ",operation=create,result=success}":        4,
		"reconciliation_errors_total{error_type=template," + ns + ",resource_type=pod}": 1,
		"pcmc_status{name=zone," + ns + "}":                                             0,
		"active_configmaps{" + ns + ",pcmc_name=zone}":                                  1,
	})
	s.expectMetrics("after a template that fails", want)
	s.config("broken", spec{ConfigMapDataTemplate: map[string]string{"k": "{{"}, PodSelector: selecting("app", "none")})
	maps.Copy(want, map[string]float64{
		"reconciliation_errors_total{error_type=template," + ns + ",resource_type=pcmc}": 1,
		"pcmc_status{name=broken," + ns + "}":                                            0,
		"active_configmaps{" + ns + ",pcmc_name=broken}":                                 0,
	})
	s.expectMetrics("after a template that does not parse", want)

	foreign := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: "pod-d-from-m-cfg"}}
	s.must(cluster.Client.Create(t.Context(), foreign))
	s.pod("d", map[string]string{"app": "web", "tier": "y"})
	maps.Copy(want, map[string]float64{
		"configmap_operations_total{" + ns + ",operation=create,result=conflict}":            many,
		"reconciliation_errors_total{error_type=name_conflict," + ns + ",resource_type=pod}": 1,
		"pcmc_status{name=m," + ns + "}":                                                     0,
	})
	s.expectMetrics("after a name that is taken", want)
	s.eventually("each refused creation is counted", func() error {
		refused := 0.0
		for _, c := range s.calls(t, time.Time{}) {
			if c.is("create", "configmaps") && c.ResponseStatus.Code == 409 {
				refused++
			}
		}
		if counted := s.scrape(t)["configmap_operations_total{"+ns+",operation=create,result=conflict}"]; counted != refused {
			return fmt.Errorf("%v counted of %v", counted, refused)
		}
		return nil
	})

	// A config's series end with it, a namespace's with all that is in it.
	s.removeConfig("broken")
	delete(want, "pcmc_status{name=broken,"+ns+"}")
	delete(want, "active_configmaps{"+ns+",pcmc_name=broken}")
	s.expectMetrics("after a config's end", want)
	s.deletePod("d")
	want["pcmc_status{name=m,"+ns+"}"] = 1
	s.expectMetrics("after the end of the pod without a ConfigMap", want)
	for _, pod := range []string{"a", "b", "c"} {
		s.deletePod(pod)
	}
	want["active_configmaps{"+ns+",pcmc_name=m}"] = 0
	want["active_configmaps{"+ns+",pcmc_name=zone}"] = 0
	want["pcmc_status{name=zone,"+ns+"}"] = 1
	s.expectMetrics("after the pods' end", want)
	s.removeConfig("m")
	s.removeConfig("zone")
	s.expectMetrics("after the end of all", map[string]float64{"queue_depth{queue_name=pod}": 0, "queue_depth{queue_name=pcmc}": 0})
}

// TestQueueDepth holds up the only worker of each queue, so that all else waits.
func TestQueueDepth(t *testing.T) {
	t.Parallel()
	s := own(t)
	proxy := newProxy(t, func(verb, path string) time.Duration {
		if verb == "POST" && strings.HasSuffix(path, "/configmaps") || verb == "PATCH" && strings.HasSuffix(path, "/status") {
			return time.Hour
		}
		return 0
	})
	s.watched(map[string]string{
		"KUBECONFIG": proxy.kubeconfig, "CONTROLLER_POD_WORKERS": "1", "CONTROLLER_PCMC_WORKERS": "1", "CONTROLLER_RECONCILIATION_TIMEOUT": "1h",
	})
	const pods, configs = 9, 4
	for i := range configs {
		s.config(fmt.Sprintf("m-%d", i), spec{})
	}
	s.eventually("a status is held up", func() error {
		if proxy.atOnce("PATCH") == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	for i := range pods {
		s.must(cluster.Client.Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: s.name, Name: fmt.Sprintf("web-%d", i)},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.invalid/app:1"}}},
		}))
	}
	s.eventually("all but one wait", func() error {
		got := s.scrape(t)
		ofPods, ofConfigs := got["queue_depth{queue_name=pod}"], got["queue_depth{queue_name=pcmc}"]
		// The config that is being worked on may wait for another look already.
		if ofPods != pods-1 || ofConfigs < configs-1 || ofConfigs > configs {
			return fmt.Errorf("%v pods and %v configs wait", ofPods, ofConfigs)
		}
		return nil
	})
}
