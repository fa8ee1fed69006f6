// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/podtemplate"
)

// maxDataSize is what the API server accepts as the sum of a ConfigMap's
// values, in bytes. Source: ValidateConfigMap of k8s.io/kubernetes.
const maxDataSize = corev1.MaxSecretSize

// Render makes the data of a pod's ConfigMap. It is pure: the same pod and
// config give the same data. The failure says why there are none.
func (c *Config) Render(pod *observed.Pod) (map[string]string, *ledger.Failure) {
	if c.Problem != nil {
		return nil, c.Problem
	}
	data := make(map[string]string, 5+len(c.labels)+len(c.annotations)+len(c.ebpf)+len(c.templates))
	data["podName"] = pod.Name
	data["namespace"] = pod.Namespace.Value()
	data["nodeName"] = pod.NodeName.Value()
	data["phase"] = pod.Phase.Value()
	data["pcmcName"] = c.Name
	for key, value := range c.ebpf {
		data[key] = value
	}
	include(data, c.labels, pod.Labels)
	include(data, c.annotations, pod.Annotations)
	if failure := c.executeTemplates(pod, data); failure != nil {
		return nil, failure
	}
	if size := sizeOf(data); size > maxDataSize {
		return nil, tooLarge(c, fmt.Sprintf("its data have %d bytes, a ConfigMap holds %d", size, maxDataSize))
	}
	return data, nil
}

func include(data map[string]string, keys []included, pairs observed.Pairs) {
	for i := range keys {
		if value, ok := pairs.Lookup(keys[i].key); ok {
			data[keys[i].dataKey] = value
		}
	}
}

func (c *Config) executeTemplates(pod *observed.Pod, data map[string]string) *ledger.Failure {
	if len(c.templates) == 0 {
		return nil
	}
	view, allowance := templateData(pod, c.Name), podtemplate.NewAllowance()
	left := maxDataSize - sizeOf(data)
	for _, template := range c.templates {
		text, err := template.ExecuteWithin(allowance, view, max(left, 0))
		if err != nil {
			return templateFailure(c, err)
		}
		data[template.Key()] = text
		left -= len(text)
	}
	return nil
}

func templateFailure(c *Config, err error) *ledger.Failure {
	var bad *podtemplate.Error
	if errors.As(err, &bad) && bad.Kind == podtemplate.KindOutput {
		return tooLarge(c, err.Error())
	}
	return &ledger.Failure{Reason: v1alpha1.ReasonTemplateInvalid, Message: fmt.Sprintf("spec.configMapDataTemplate: %v", err)}
}

func tooLarge(c *Config, what string) *ledger.Failure {
	return &ledger.Failure{
		Reason:  v1alpha1.ReasonTooLarge,
		Message: fmt.Sprintf("%s; include fewer or smaller values in config %q", what, c.Name),
	}
}

func sizeOf(data map[string]string) int {
	size := 0
	for _, value := range data {
		size += len(value)
	}
	return size
}

// templateData is the view of a pod that templates get; docs/templates.md
// promises it to users.
func templateData(pod *observed.Pod, config string) map[string]any {
	containers := make([]map[string]string, len(pod.Containers))
	for i, c := range pod.Containers {
		containers[i] = map[string]string{"name": c.Name.Value(), "image": c.Image.Value()}
	}
	startTime := ""
	if !pod.StartTime.IsZero() {
		startTime = pod.StartTime.Format(time.RFC3339)
	}
	return map[string]any{
		"podName":            pod.Name,
		"namespace":          pod.Namespace.Value(),
		"nodeName":           pod.NodeName.Value(),
		"phase":              pod.Phase.Value(),
		"pcmcName":           config,
		"uid":                string(pod.UID),
		"podIP":              first(pod.PodIPs),
		"podIPs":             pod.PodIPs,
		"hostIP":             first(pod.HostIPs),
		"hostIPs":            pod.HostIPs,
		"serviceAccountName": pod.ServiceAccountName.Value(),
		"qosClass":           pod.QOSClass.Value(),
		"startTime":          startTime,
		"labels":             pod.Labels.Map(),
		"annotations":        pod.Annotations.Map(),
		"owner":              map[string]string{"kind": pod.Owner.Kind.Value(), "name": pod.Owner.Name.Value()},
		"containers":         containers,
	}
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}
