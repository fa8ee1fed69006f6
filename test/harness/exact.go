// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// shownDifferences is how many an error lists.
const shownDifferences = 8

// State is what a namespace holds.
type State struct {
	Pods       []corev1.Pod
	Configs    []v1alpha1.PodConfigMapConfig
	ConfigMaps []corev1.ConfigMap // those with our label
}

// ReadState reads a namespace.
func (c *Cluster) ReadState(ctx context.Context, namespace string) (*State, error) {
	pods, configs, configMaps := &corev1.PodList{}, &v1alpha1.PodConfigMapConfigList{}, &corev1.ConfigMapList{}
	in := client.InNamespace(namespace)
	err := errors.Join(c.Client.List(ctx, pods, in), c.Client.List(ctx, configs, in),
		c.Client.List(ctx, configMaps, in, client.HasLabels{v1alpha1.LabelGeneratedBy}))
	if err != nil {
		return nil, fmt.Errorf("reading namespace %q: %w", namespace, err)
	}
	return &State{pods.Items, configs.Items, configMaps.Items}, nil
}

// Differences compares the ConfigMaps with what the pods and configs call for:
// for every pod and each config that selects it one ConfigMap with just the
// data that the operator renders, our labels and the pod as its owner, and none
// beyond those. It returns a sentence for each difference.
func (s *State) Differences() []string {
	wanted := s.wanted()
	var all []string
	for i := range s.ConfigMaps {
		cm := &s.ConfigMaps[i]
		want, known := wanted[cm.Name]
		if !known {
			all = append(all, fmt.Sprintf("ConfigMap %q (of config %q) should not exist", cm.Name, cm.Labels[v1alpha1.LabelGeneratedBy]))
			continue
		}
		delete(wanted, cm.Name)
		all = append(all, differences(cm, want)...)
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		all = append(all, fmt.Sprintf("ConfigMap %q is missing", name))
	}
	return all
}

func (s *State) wanted() map[string]*corev1.ConfigMap {
	wanted := map[string]*corev1.ConfigMap{}
	for i := range s.Configs {
		config := configmaps.Compile(&s.Configs[i])
		for j := range s.Pods {
			pod := &s.Pods[j]
			if seen := observed.NewPod(pod); config.Matches(seen) {
				cm := wantedFor(pod, config, seen)
				wanted[cm.Name] = cm
			}
		}
	}
	return wanted
}

// wantedFor takes the data from the operator's own code, and says the rest in
// words of its own.
func wantedFor(pod *corev1.Pod, config *configmaps.Config, seen *observed.Pod) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{}
	cm.Name = "pod-" + pod.Name + "-from-" + config.Name + "-cfg"
	cm.Labels = map[string]string{
		"podconfig.example.com/generated-by-pcmc": config.Name, "podconfig.example.com/pod-uid": string(pod.UID),
	}
	controller := true
	cm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: &controller}}
	if rendered, failure := configmaps.New(seen, config); failure == nil {
		cm.Data = rendered.Data
	} else {
		cm.Data = map[string]string{"cannot be rendered": failure.Message}
	}
	return cm
}

func differences(got, want *corev1.ConfigMap) []string {
	var all []string
	for _, part := range []struct {
		name      string
		got, want any
	}{
		{"data", got.Data, want.Data},
		{"labels", got.Labels, want.Labels},
		{"owners", got.OwnerReferences, want.OwnerReferences},
		{"binary data", len(got.BinaryData), 0},
		{"deletion", got.DeletionTimestamp != nil, false},
	} {
		if !reflect.DeepEqual(part.got, part.want) {
			all = append(all, fmt.Sprintf("ConfigMap %q: %s %v, want %v", got.Name, part.name, part.got, part.want))
		}
	}
	return all
}

// StatusDifferences tells which configs' status does not say that all of their
// pods are served.
func (s *State) StatusDifferences() []string {
	var all []string
	for i := range s.Configs {
		pcmc := &s.Configs[i]
		config := configmaps.Compile(pcmc)
		matched := 0
		for j := range s.Pods {
			if config.Matches(observed.NewPod(&s.Pods[j])) {
				matched++
			}
		}
		got := pcmc.Status
		if got.ObservedGeneration != pcmc.Generation || int(got.MatchedPods) != matched || int(got.SyncedConfigMaps) != matched ||
			got.FailedConfigMaps != 0 || !meta.IsStatusConditionTrue(got.Conditions, v1alpha1.ConditionReady) {
			all = append(all, fmt.Sprintf("config %q: status %+v, want generation %d and %d pods served", pcmc.Name, got, pcmc.Generation, matched))
		}
	}
	return all
}

// WaitExact waits until each namespace holds exactly the right ConfigMaps.
func (c *Cluster) WaitExact(ctx context.Context, patience time.Duration, namespaces ...string) error {
	return c.wait(ctx, patience, namespaces, (*State).Differences)
}

// WaitServed waits, beyond that, until the status of the configs says so.
func (c *Cluster) WaitServed(ctx context.Context, patience time.Duration, namespaces ...string) error {
	return c.wait(ctx, patience, namespaces, (*State).Differences, (*State).StatusDifferences)
}

// CheckServed tells whether all of that is so now.
func (c *Cluster) CheckServed(ctx context.Context, namespaces ...string) error {
	return c.check(ctx, namespaces, []func(*State) []string{(*State).Differences, (*State).StatusDifferences})
}

func (c *Cluster) wait(ctx context.Context, patience time.Duration, namespaces []string, finders ...func(*State) []string) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		last = c.check(ctx, namespaces, finders) // not cut short, or the reason would be lost
		return last == nil, nil
	})
	return errors.Join(err, last)
}

func (c *Cluster) check(ctx context.Context, namespaces []string, finders []func(*State) []string) error {
	for _, namespace := range namespaces {
		state, err := c.ReadState(ctx, namespace)
		if err != nil {
			return err
		}
		var all []string
		for _, find := range finders {
			all = append(all, find(state)...)
		}
		if len(all) > 0 {
			shown := all[:min(len(all), shownDifferences)]
			return fmt.Errorf("namespace %q has %d differences:\n  %s", namespace, len(all), strings.Join(shown, "\n  "))
		}
	}
	return nil
}

// ConfigMap is the name of the ConfigMap of a pod and a config.
func ConfigMap(namespace, pod, config string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: "pod-" + pod + "-from-" + config + "-cfg"}
}
