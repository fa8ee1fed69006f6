// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
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

// callsAtOnce is how many of one pod's steps are carried out at the same time.
const callsAtOnce = 4

// carryOutAll makes the API calls of a pod's steps, and returns each step's error. A
// call that panics does so here, where the controller outlives it.
func (a *applier) carryOutAll(ctx context.Context, pod *observed.Pod, steps []step) []error {
	errs, panics := make([]error, len(steps)), make([]any, len(steps))
	call := func(i int) {
		defer func() {
			if p := recover(); p != nil {
				panics[i] = fmt.Sprintf("%v\n%s", p, debug.Stack())
			}
		}()
		errs[i] = a.carryOut(ctx, pod, &steps[i])
	}
	var others errgroup.Group
	others.SetLimit(callsAtOnce - 1)
	last := -1 // of those so far that are to be made
	for i := range steps {
		if steps[i].verb == keep {
			continue
		}
		if before := last; before >= 0 {
			others.Go(func() error { call(before); return nil })
		}
		last = i
	}
	if last >= 0 {
		call(last) // Here: this goroutine's stack has grown for calls before.
	}
	_ = others.Wait() // None returns an error.
	for _, p := range panics {
		if p != nil {
			panic(p)
		}
	}
	return errs
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
	a.configMaps.Wrote(a.configMaps.Observe(made))
	return nil
}

var noData = observed.DigestOf(nil)

// patchOf returns what turns the current ConfigMap into the step's, as a strategic merge
// patch, which costs the API server a tenth less than a JSON patch. It holds the UID
// and the resource version that were planned for, so a ConfigMap that changed
// meanwhile answers with a conflict, and it touches none of its other labels,
// annotations or fields.
func patchOf(pod *observed.Pod, s *step) ([]byte, error) {
	type object map[string]any
	metadata := object{"uid": s.current.UID, "resourceVersion": s.current.ResourceVersion}
	if s.current.Config.Value() != s.config.Name || s.current.PodUID != pod.UID {
		metadata["labels"] = object{v1alpha1.LabelGeneratedBy: s.config.Name, v1alpha1.LabelPodUID: pod.UID}
	}
	data := maps.Clone(s.data)
	if s.current.Data != noData {
		// The directive replaces the map instead of merging into it; where there is
		// none, it would make none. No data key can begin with a dollar sign.
		// Source: Kubernetes' notes on strategic merge patch.
		data["$patch"] = "replace"
	}
	body := object{"metadata": metadata, "data": data}
	if s.current.HasBinaryData {
		body["binaryData"] = nil
	}
	// Escaping for HTML would make some values six times as long.
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(body)
	return bytes.TrimRight(text.Bytes(), "\n"), err
}

func (a *applier) update(ctx context.Context, pod *observed.Pod, s *step) error {
	call := a.patch
	if s.current.Plain {
		call = a.put
	}
	made, err := call(ctx, pod, s)
	a.metrics.operation("update", pod.Namespace.Value(), err)
	if err != nil {
		return fmt.Errorf("updating ConfigMap %q for pod %q: %w", s.name, pod.Name, err)
	}
	a.configMaps.Wrote(a.configMaps.Observe(made))
	return nil
}

// put writes the whole ConfigMap in the place of exactly the one that was planned for,
// which costs the API server a fifth less than a patch. It leaves out the managed
// fields, which the API server then keeps.
func (a *applier) put(ctx context.Context, pod *observed.Pod, s *step) (*corev1.ConfigMap, error) {
	cm := newConfigMap(pod, s)
	cm.UID, cm.ResourceVersion = s.current.UID, s.current.ResourceVersion
	return a.client.ConfigMaps(cm.Namespace).Update(ctx, cm, metav1.UpdateOptions{FieldManager: observed.FieldManager})
}

func (a *applier) patch(ctx context.Context, pod *observed.Pod, s *step) (*corev1.ConfigMap, error) {
	body, err := patchOf(pod, s)
	if err != nil {
		return nil, fmt.Errorf("encoding the patch: %w", err)
	}
	return a.client.ConfigMaps(pod.Namespace.Value()).Patch(ctx, s.name, types.StrategicMergePatchType, body,
		metav1.PatchOptions{FieldManager: observed.FieldManager})
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
