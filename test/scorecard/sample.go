// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

const (
	// namespaceVariable is set by scorecard.
	namespaceVariable = "SCORECARD_NAMESPACE"
	// patience is for each step of the sample.
	patience = 2 * time.Minute
)

// checkSample makes the bundle's first example and a pod that it selects, in the
// cluster that it runs in, and looks at the ConfigMap that the operator promises.
func checkSample(b *bundle) []string {
	config, err := sampleConfig(b.csv.Annotations["alm-examples"])
	if err != nil {
		return []string{err.Error()}
	}
	s, err := newSample(config, os.Getenv(namespaceVariable))
	if err != nil {
		return []string{err.Error()}
	}
	ctx := context.Background()
	if err := errors.Join(s.try(ctx), s.tidy(ctx)); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// sampleConfig is the first PodConfigMapConfig among a CSV's examples.
func sampleConfig(examples string) (*v1alpha1.PodConfigMapConfig, error) {
	var all []json.RawMessage
	if err := json.Unmarshal([]byte(examples), &all); err != nil {
		return nil, fmt.Errorf("reading the annotation alm-examples: %w", err)
	}
	for _, text := range all {
		config := &v1alpha1.PodConfigMapConfig{}
		if err := json.Unmarshal(text, config); err != nil {
			return nil, fmt.Errorf("reading an example: %w", err)
		}
		if config.Kind == "PodConfigMapConfig" && config.Spec.EBPFConfig == nil {
			return config, nil
		}
	}
	return nil, errors.New("looking for a PodConfigMapConfig without eBPF in the annotation alm-examples: there is none")
}

// sample is the example at work.
type sample struct {
	client client.Client
	config *v1alpha1.PodConfigMapConfig
	pod    *corev1.Pod
}

func newSample(config *v1alpha1.PodConfigMapConfig, namespace string) (*sample, error) {
	if namespace == "" {
		return nil, fmt.Errorf("%s is not set: run this by operator-sdk scorecard", namespaceVariable)
	}
	cluster, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("looking for the cluster: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	c, err := client.New(cluster, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	config.Namespace = namespace
	config.Name += "-" + time.Now().UTC().Format("150405")
	return &sample{client: c, config: config, pod: podFor(config)}, nil
}

// podFor is a pod that the config selects, and that has all it includes. It needs
// not run.
func podFor(config *v1alpha1.PodConfigMapConfig) *corev1.Pod {
	yes, no := true, false
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: config.Name, Namespace: config.Namespace, Labels: map[string]string{}, Annotations: map[string]string{},
	}}
	for _, key := range config.Spec.LabelsToInclude {
		pod.Labels[string(key)] = "scorecard"
	}
	if config.Spec.PodSelector != nil {
		maps.Copy(pod.Labels, config.Spec.PodSelector.MatchLabels)
	}
	for _, key := range config.Spec.AnnotationsToInclude {
		pod.Annotations[string(key)] = "scorecard"
	}
	pod.Spec = corev1.PodSpec{
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{
			Name: "pause", Image: "registry.k8s.io/pause:3.10",
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
		}},
	}
	return pod
}

// wanted are the keys that do not depend on what the pod is doing.
func (s *sample) wanted() map[string]string {
	data := map[string]string{
		"podName": s.pod.Name, "namespace": s.pod.Namespace, "pcmcName": s.config.Name, "ebpf_enabled": "false",
	}
	for _, key := range s.config.Spec.LabelsToInclude {
		data["label_"+strings.ReplaceAll(string(key), "/", "_")] = s.pod.Labels[string(key)]
	}
	for _, key := range s.config.Spec.AnnotationsToInclude {
		data["annotation_"+strings.ReplaceAll(string(key), "/", "_")] = s.pod.Annotations[string(key)]
	}
	return data
}

// try creates, changes and removes, and waits for the ConfigMap each time.
func (s *sample) try(ctx context.Context) error {
	if err := errors.Join(s.client.Create(ctx, s.config), s.client.Create(ctx, s.pod)); err != nil {
		return fmt.Errorf("creating the sample: %w; may this ServiceAccount create pods and configs? (-s)", err)
	}
	if err := s.await(ctx, "right", s.right); err != nil {
		return err
	}
	if len(s.config.Spec.LabelsToInclude) > 0 {
		before := s.pod.DeepCopy()
		s.pod.Labels[string(s.config.Spec.LabelsToInclude[0])] = "changed"
		if err := s.client.Patch(ctx, s.pod, client.MergeFrom(before)); err != nil {
			return fmt.Errorf("changing a label of the sample's pod: %w", err)
		}
		if err := s.await(ctx, "changed with its pod", s.right); err != nil {
			return err
		}
	}
	if err := s.client.Delete(ctx, s.config); err != nil {
		return fmt.Errorf("deleting the sample's config: %w", err)
	}
	return s.await(ctx, "gone with its config", func(cm *corev1.ConfigMap) error {
		if cm != nil {
			return errors.New("it is still there")
		}
		return nil
	})
}

func (s *sample) right(cm *corev1.ConfigMap) error {
	if cm == nil {
		return errors.New("it is not there")
	}
	for key, value := range s.wanted() {
		if cm.Data[key] != value {
			return fmt.Errorf("its key %s is %q instead of %q", key, cm.Data[key], value)
		}
	}
	for key := range s.config.Spec.ConfigMapDataTemplate {
		if cm.Data[key] == "" {
			return fmt.Errorf("its key %s, of a template, is missing", key)
		}
	}
	if len(cm.OwnerReferences) != 1 || cm.OwnerReferences[0].UID != s.pod.UID {
		return fmt.Errorf("its owner is not the pod: %v", cm.OwnerReferences)
	}
	return nil
}

// await waits until the ConfigMap, nil where there is none, is as it should be.
func (s *sample) await(ctx context.Context, what string, check func(*corev1.ConfigMap) error) error {
	key := types.NamespacedName{Namespace: s.pod.Namespace, Name: "pod-" + s.pod.Name + "-from-" + s.config.Name + "-cfg"}
	var last error
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		cm := &corev1.ConfigMap{}
		switch err := s.client.Get(ctx, key, cm); {
		case apierrors.IsNotFound(err):
			last = check(nil)
		case err != nil:
			last = err
		default:
			last = check(cm)
		}
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("ConfigMap %s is not %s within %s: %w; does the operator run, and watch this namespace?", key, what, patience, last)
	}
	return nil
}

// tidy removes what the test made.
func (s *sample) tidy(ctx context.Context) error {
	err := errors.Join(client.IgnoreNotFound(s.client.Delete(ctx, s.pod, client.GracePeriodSeconds(0))), client.IgnoreNotFound(s.client.Delete(ctx, s.config)))
	if err != nil {
		return fmt.Errorf("removing the sample: %w", err)
	}
	return nil
}
