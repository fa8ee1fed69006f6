// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
)

// sample is what a folder of samples holds, in the order of its kustomization.yaml.
type sample struct {
	folder  string
	objects []client.Object
	config  *v1alpha1.PodConfigMapConfig
	// selected are the pods of the config; others are those it does not select.
	selected, others []*corev1.Pod
	created          []client.Object
}

func (s *sample) namespace() string { return s.config.Namespace }

// configMap is the name of a pod's ConfigMap.
func (s *sample) configMap(pod *corev1.Pod) client.ObjectKey {
	return client.ObjectKey{Namespace: pod.Namespace, Name: configmaps.ConfigMapName(pod.Name, s.config.Name)}
}

func readSample(folder string) (*sample, error) {
	text, err := os.ReadFile(filepath.Join(folder, "kustomization.yaml"))
	if err != nil {
		return nil, fmt.Errorf("reading the sample: %w", err)
	}
	var kustomization struct{ Resources []string }
	if err := sigsyaml.Unmarshal(text, &kustomization); err != nil {
		return nil, fmt.Errorf("reading %s/kustomization.yaml: %w", folder, err)
	}
	s := &sample{folder: folder}
	for _, file := range kustomization.Resources {
		if err := s.read(filepath.Join(folder, file)); err != nil {
			return nil, fmt.Errorf("reading %s/%s: %w", folder, file, err)
		}
	}
	return s, s.sort()
}

func (s *sample) read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var kind metav1.TypeMeta
		if err := sigsyaml.Unmarshal(raw.Raw, &kind); err != nil {
			return err
		}
		var object client.Object
		switch kind.Kind {
		case "Namespace":
			object = &corev1.Namespace{}
		case "Pod":
			object = &corev1.Pod{}
		case "PodConfigMapConfig":
			object = &v1alpha1.PodConfigMapConfig{}
		default:
			return fmt.Errorf("kind %q: the sample has namespaces, pods and PodConfigMapConfigs only", kind.Kind)
		}
		if err := sigsyaml.UnmarshalStrict(raw.Raw, object); err != nil {
			return err
		}
		s.objects = append(s.objects, object)
	}
}

// sort finds the config and its pods.
func (s *sample) sort() error {
	for _, object := range s.objects {
		if config, ok := object.(*v1alpha1.PodConfigMapConfig); ok && s.config == nil {
			s.config = config
		}
	}
	if s.config == nil {
		return errors.New("reading the sample: it has no PodConfigMapConfig")
	}
	selector, err := metav1.LabelSelectorAsSelector(s.config.Spec.LabelSelector())
	if err != nil {
		return fmt.Errorf("reading the sample's podSelector: %w", err)
	}
	for _, object := range s.objects {
		pod, ok := object.(*corev1.Pod)
		switch {
		case !ok:
		case pod.Namespace == s.config.Namespace && selector.Matches(labels.Set(pod.Labels)):
			s.selected = append(s.selected, pod)
		default:
			s.others = append(s.others, pod)
		}
	}
	if len(s.selected) < 2 {
		return fmt.Errorf("reading the sample: its config selects %d pods; the tour needs two", len(s.selected))
	}
	return nil
}

// apply creates the sample's objects. One that is there already is left alone.
func (s *session) apply(ctx context.Context, sample *sample) error {
	s.step("The sample (%s)", sample.folder)
	for _, object := range sample.objects {
		kind := object.GetObjectKind().GroupVersionKind().Kind
		what := fmt.Sprintf("%s %s", kind, object.GetName())
		_, err := s.await(ctx, what+" is created", func(ctx context.Context) (bool, error) {
			return s.create(ctx, object)
		})
		_, isNamespace := object.(*corev1.Namespace)
		switch {
		case apierrors.IsAlreadyExists(err) && isNamespace:
			s.say("%-20s %s, which was there already and stays", kind, object.GetName())
			continue
		case apierrors.IsAlreadyExists(err):
			return fmt.Errorf("%s is there already, and this would change it; remove it first: kubectl delete -k %s", what, sample.folder)
		case err != nil:
			return err
		}
		sample.created = append(sample.created, object)
		s.say("%-20s %s", kind, object.GetName())
	}
	return nil
}

// create creates one object. In a new namespace, pods have to wait for the
// ServiceAccount that kube-controller-manager makes.
func (s *session) create(ctx context.Context, object client.Object) (bool, error) {
	err := s.client.Create(ctx, object)
	if _, isPod := object.(*corev1.Pod); isPod && apierrors.IsForbidden(err) {
		account := &corev1.ServiceAccount{}
		if s.client.Get(ctx, client.ObjectKey{Namespace: object.GetNamespace(), Name: "default"}, account) != nil {
			return false, err
		}
	}
	return true, err
}

// remove removes what apply created.
func (s *session) remove(ctx context.Context, sample *sample) error {
	slices.Reverse(sample.created)
	return s.deleteAll(ctx, sample.created)
}

// deleteAll deletes just these objects, not others of their names, and waits
// until they are gone.
func (s *session) deleteAll(ctx context.Context, objects []client.Object) error {
	for _, object := range objects {
		if err := s.delete(ctx, object); err != nil {
			return err
		}
	}
	for _, object := range objects {
		uid := object.GetUID()
		_, err := s.awaitAlone(ctx, fmt.Sprintf("%s is gone", object.GetName()), func(ctx context.Context) (bool, error) {
			err := s.client.Get(ctx, client.ObjectKeyFromObject(object), object)
			return apierrors.IsNotFound(err) || err == nil && object.GetUID() != uid, client.IgnoreNotFound(err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) delete(ctx context.Context, object client.Object) error {
	uid := object.GetUID()
	err := s.client.Delete(ctx, object, client.Preconditions{UID: &uid})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("deleting %s: %w", object.GetName(), err)
	}
	return nil
}
