// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/podtemplate"
)

// Config is one generation of a PodConfigMapConfig, compiled. It is immutable.
type Config struct {
	Namespace, Name string
	UID             types.UID
	Generation      int64

	// Problem is set where the config itself is at fault. Its pods keep the
	// ConfigMaps they have.
	Problem *ledger.Failure

	// told is the reason of the condition ConfigMapsSynced for this generation,
	// where one stood there already.
	told string

	selector            labels.Selector
	labels, annotations []included
	ebpf                map[string]string
	templates           []*podtemplate.Template
}

// included is a label or annotation that the config asks for.
type included struct{ key, dataKey string }

// Compile prepares a config for rendering.
func Compile(pcmc *v1alpha1.PodConfigMapConfig) *Config {
	c := &Config{
		Namespace: pcmc.Namespace, Name: pcmc.Name, UID: pcmc.UID, Generation: pcmc.Generation,
		labels:      includedKeys("label_", pcmc.Spec.LabelsToInclude),
		annotations: includedKeys("annotation_", pcmc.Spec.AnnotationsToInclude),
		ebpf:        ebpfData(pcmc.Spec.EBPFConfig),
	}
	var err error
	if c.selector, err = metav1.LabelSelectorAsSelector(pcmc.Spec.LabelSelector()); err != nil {
		// The CRD's schema refuses these; one that came by another way must not
		// make its ConfigMaps go.
		c.selector = labels.Everything()
		c.Problem = &ledger.Failure{Reason: v1alpha1.ReasonRetriesExhausted, Message: fmt.Sprintf("spec.podSelector: %v", err)}
	}
	if synced := meta.FindStatusCondition(pcmc.Status.Conditions, v1alpha1.ConditionConfigMapsSynced); synced != nil && synced.ObservedGeneration == pcmc.Generation {
		c.told = synced.Reason
	}
	for _, key := range slices.Sorted(maps.Keys(pcmc.Spec.ConfigMapDataTemplate)) {
		template, err := podtemplate.Compile(key, pcmc.Spec.ConfigMapDataTemplate[key])
		if err != nil {
			c.Problem = &ledger.Failure{Reason: v1alpha1.ReasonTemplateInvalid, Message: fmt.Sprintf("spec.configMapDataTemplate: %v", err)}
			break
		}
		c.templates = append(c.templates, template)
	}
	return c
}

// Key is the config's namespace and name.
func (c *Config) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
}

// Matches tells whether the config selects the pod.
func (c *Config) Matches(pod *observed.Pod) bool { return c.selector.Matches(pod.Labels) }

func includedKeys(prefix string, keys []v1alpha1.MetadataKey) []included {
	all := make([]included, len(keys))
	for i, key := range keys {
		all[i] = included{key: string(key), dataKey: dataKey(prefix, string(key))}
	}
	return all
}

// ebpfData says what the config asks for, not what the kernel does: that is
// status, metric and Event.
func ebpfData(e *v1alpha1.EBPFConfig) map[string]string {
	data := map[string]string{"ebpf_enabled": strconv.FormatBool(e.Requested())}
	if e == nil {
		return data
	}
	if s := e.SyscallMonitoring; s != nil {
		data["ebpf_syscall_monitoring"] = strconv.FormatBool(s.Enabled)
	}
	if f := e.L4Firewall; f != nil {
		data["ebpf_l4_firewall"] = strconv.FormatBool(f.Enabled)
		data["ebpf_l4_firewall_default_action"] = string(f.EffectiveDefaultAction())
	}
	if m := e.MetricsExport; m != nil {
		data["ebpf_metrics_export"] = strconv.FormatBool(m.Enabled)
	}
	return data
}
