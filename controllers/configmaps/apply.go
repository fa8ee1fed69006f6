// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// applier makes the API calls of a pod's steps. What it wrote is remembered in
// the store, so that the next plan does not depend on the watch's speed.
type applier struct {
	client     corev1client.ConfigMapsGetter
	configMaps *observed.ConfigMaps
	metrics    *Metrics
}

// carryOut makes the step's API calls.
func (a *applier) carryOut(ctx context.Context, pod *observed.Pod, s *step) error {
	switch s.verb {
	case create:
		return a.create(ctx, pod, s)
	case update:
		return a.update(ctx, pod, s)
	case replace:
		if err := a.delete(ctx, s.current); err != nil {
			return err
		}
		return a.create(ctx, pod, s)
	case remove:
		return a.delete(ctx, s.current)
	default:
		return nil
	}
}

// New makes the ConfigMap of a pod and a config, as the operator would create it.
func New(pod *observed.Pod, config *Config) (*corev1.ConfigMap, *ledger.Failure) {
	data, failure := config.Render(pod)
	if failure != nil {
		return nil, failure
	}
	cm := newConfigMap(pod, &step{config: config, name: ConfigMapName(pod.Name, config.Name), data: data})
	cm.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
	return cm, nil
}

// newConfigMap does not set blockOwnerDeletion, which needs rights that some
// clusters do not give.
func newConfigMap(pod *observed.Pod, s *step) *corev1.ConfigMap {
	isController := true
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name:      s.name,
			Namespace: pod.Namespace.Value(),
			Labels: map[string]string{
				v1alpha1.LabelGeneratedBy: s.config.Name,
				v1alpha1.LabelPodUID:      string(pod.UID),
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: &isController,
			}},
		},
		Data: s.data,
	}
}

func (a *applier) create(ctx context.Context, pod *observed.Pod, s *step) error {
	cm := newConfigMap(pod, s)
	made, err := a.client.ConfigMaps(cm.Namespace).Create(ctx, cm, metav1.CreateOptions{FieldManager: observed.FieldManager})
	a.metrics.operation("create", cm.Namespace, err)
	if err != nil {
		return fmt.Errorf("creating ConfigMap %q for pod %q: %w", s.name, pod.Name, err)
	}
	a.configMaps.Wrote(observed.NewConfigMap(made))
	return nil
}

// patchOperation is one of a JSON patch. Source: RFC 6902.
type patchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// patch turns the current ConfigMap into the step's. It holds the UID and the
// resource version that were planned for, so a ConfigMap that changed meanwhile
// answers with a conflict, and it touches none of its other labels,
// annotations or fields.
func patch(pod *observed.Pod, s *step) ([]byte, error) {
	operations := []patchOperation{
		{"replace", "/metadata/uid", s.current.UID},
		{"replace", "/metadata/resourceVersion", s.current.ResourceVersion},
		{"add", "/data", s.data},
	}
	if !s.current.HasLabels {
		operations = append(operations, patchOperation{"add", "/metadata/labels", map[string]string{}})
	}
	if s.current.Config.Value() != s.config.Name {
		operations = append(operations, patchOperation{"add", labelPath(v1alpha1.LabelGeneratedBy), s.config.Name})
	}
	if s.current.PodUID != pod.UID {
		operations = append(operations, patchOperation{"add", labelPath(v1alpha1.LabelPodUID), pod.UID})
	}
	if s.current.HasBinaryData {
		operations = append(operations, patchOperation{Op: "remove", Path: "/binaryData"})
	}
	// Escaping for HTML would make some values six times as long.
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(operations)
	return bytes.TrimRight(body.Bytes(), "\n"), err
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

func labelPath(label string) string { return "/metadata/labels/" + pointerEscaper.Replace(label) }

func (a *applier) update(ctx context.Context, pod *observed.Pod, s *step) error {
	body, err := patch(pod, s)
	if err != nil {
		return fmt.Errorf("encoding the patch of ConfigMap %q: %w", s.name, err)
	}
	namespace := pod.Namespace.Value()
	made, err := a.client.ConfigMaps(namespace).Patch(ctx, s.name, types.JSONPatchType, body,
		metav1.PatchOptions{FieldManager: observed.FieldManager})
	a.metrics.operation("update", namespace, err)
	if err != nil {
		return fmt.Errorf("updating ConfigMap %q for pod %q: %w", s.name, pod.Name, err)
	}
	a.configMaps.Wrote(observed.NewConfigMap(made))
	return nil
}

// delete deletes exactly the ConfigMap that was seen. One that is gone already
// is fine.
func (a *applier) delete(ctx context.Context, cm *observed.ConfigMap) error {
	namespace := cm.Namespace.Value()
	err := a.client.ConfigMaps(namespace).Delete(ctx, cm.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &cm.UID, ResourceVersion: &cm.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		a.configMaps.Deleted(cm)
		return nil
	}
	a.metrics.operation("delete", namespace, err)
	if err != nil {
		return fmt.Errorf("deleting ConfigMap %q of pod %q: %w", cm.Name, cm.OwnerName, err)
	}
	a.configMaps.Deleted(cm)
	return nil
}

// live reads a ConfigMap that the label-selected caches do not show; nil where
// there is none.
func (a *applier) live(ctx context.Context, namespace, name string) (*observed.ConfigMap, error) {
	cm, err := a.client.ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %q: %w", name, err)
	}
	return observed.NewConfigMap(cm), nil
}
