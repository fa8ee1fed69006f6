// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// newValue is what the tour sets a label to.
const newValue = "canary"

// shown tells whether a ConfigMap has what the tour waits for.
type shown func(data map[string]string) bool

func exists(map[string]string) bool { return true }

func (s *session) isRunning(data map[string]string) bool {
	return data["phase"] == string(corev1.PodRunning) && data["nodeName"] == s.nodeName
}

// tour shows that ConfigMaps appear, follow a label and go with their pod.
func (s *session) tour(ctx context.Context, sample *sample, complete shown) error {
	if err := s.showAppear(ctx, sample, complete); err != nil {
		return err
	}
	if err := s.showLabel(ctx, sample); err != nil {
		return err
	}
	if err := s.showDeletion(ctx, sample); err != nil {
		return err
	}
	return s.showStatus(ctx, sample)
}

func (s *session) showAppear(ctx context.Context, sample *sample, complete shown) error {
	s.step("A ConfigMap for each pod that the config %s selects", sample.config.Name)
	for _, pod := range sample.selected {
		data, _, err := s.awaitData(ctx, sample.configMap(pod), complete)
		if err != nil {
			return err
		}
		s.showConfigMap(sample.configMap(pod).Name, data)
	}
	for _, pod := range sample.others {
		cm := &corev1.ConfigMap{}
		err := s.client.Get(ctx, sample.configMap(pod), cm)
		if err == nil {
			return fmt.Errorf("found ConfigMap %s, though the config does not select pod %s", cm.Name, pod.Name)
		}
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("looking for a ConfigMap of pod %s: %w", pod.Name, err)
		}
		s.say("%s has none: the config does not select it", pod.Name)
	}
	return nil
}

// awaitData waits for a ConfigMap and returns its data.
func (s *session) awaitData(ctx context.Context, key client.ObjectKey, complete shown) (map[string]string, time.Duration, error) {
	cm := &corev1.ConfigMap{}
	took, err := s.await(ctx, "ConfigMap "+key.Name+" is as it should be", func(ctx context.Context) (bool, error) {
		err := s.client.Get(ctx, key, cm)
		return err == nil && complete(cm.Data), err
	})
	return cm.Data, took, err
}

func (s *session) showLabel(ctx context.Context, sample *sample) error {
	pod, included := sample.selected[0], sample.config.Spec.LabelsToInclude
	if len(included) == 0 {
		return fmt.Errorf("reading the sample: its config includes no label")
	}
	label := string(included[len(included)-1])
	dataKey := "label_" + strings.ReplaceAll(label, "/", "_")
	s.step("A label changes: kubectl label pod -n %s %s %s=%s --overwrite", pod.Namespace, pod.Name, label, newValue)
	before, _, err := s.awaitData(ctx, sample.configMap(pod), exists)
	if err != nil {
		return err
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, label, newValue)
	if err := s.client.Patch(ctx, pod.DeepCopy(), client.RawPatch("application/merge-patch+json", patch)); err != nil {
		return fmt.Errorf("labelling pod %s: %w", pod.Name, err)
	}
	after, took, err := s.awaitData(ctx, sample.configMap(pod), func(data map[string]string) bool { return data[dataKey] == newValue })
	if err != nil {
		return err
	}
	s.say("%s followed after %s:", s.styled(bold, sample.configMap(pod).Name), seconds(took))
	s.showChanges(changes(before, after))
	return nil
}

func (s *session) showDeletion(ctx context.Context, sample *sample) error {
	pod := sample.selected[len(sample.selected)-1]
	s.step("A pod is deleted: kubectl delete pod -n %s %s", pod.Namespace, pod.Name)
	if err := s.delete(ctx, pod); err != nil {
		return err
	}
	key := sample.configMap(pod)
	took, err := s.await(ctx, "ConfigMap "+key.Name+" is gone", func(ctx context.Context) (bool, error) {
		err := s.client.Get(ctx, key, &corev1.ConfigMap{})
		return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
	})
	if err != nil {
		return err
	}
	s.say("%s was gone after %s", s.styled(bold, key.Name), seconds(took))
	return nil
}

// showStatus waits until the config is ready, and prints it like kubectl.
func (s *session) showStatus(ctx context.Context, sample *sample) error {
	s.step("The config's own account: kubectl get pcmc -n %s", sample.namespace())
	config, left := &v1alpha1.PodConfigMapConfig{}, int32(len(sample.selected)-1)
	_, err := s.await(ctx, "the config is Ready", func(ctx context.Context) (bool, error) {
		err := s.client.Get(ctx, client.ObjectKeyFromObject(sample.config), config)
		status := &config.Status
		return err == nil && status.ObservedGeneration == config.Generation && status.SyncedConfigMaps == left &&
			meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionReady), err
	})
	if err != nil {
		return err
	}
	s.say("%-*s  READY  MATCHED  SYNCED  FAILED", len(config.Name), "NAME")
	s.say("%s  True   %-7d  %-6d  %d", config.Name, config.Status.MatchedPods, config.Status.SyncedConfigMaps, config.Status.FailedConfigMaps)
	return nil
}

// explore prints what the user may do next, and lets ConfigMaps' changes show
// meanwhile.
func (s *session) explore(sample *sample) {
	if s.once {
		return
	}
	s.step("Your turn, in another terminal")
	namespace, pod := sample.namespace(), sample.selected[0]
	s.say("KUBECONFIG=%s kubectl get pcmc,cm -n %s", s.kubeconfig, namespace)
	s.say("")
	s.say("export KUBECONFIG=%s", s.kubeconfig)
	s.say("kubectl get cm -n %s %s -o yaml", namespace, sample.configMap(pod).Name)
	s.say("kubectl annotate pod -n %s %s shop.example.com/owner=me --overwrite", namespace, pod.Name)
	s.say("kubectl edit pcmc -n %s %s", namespace, sample.config.Name)
	s.say("kubectl describe pcmc -n %s %s", namespace, sample.config.Name)
	s.say("kubectl explain pcmc.spec")
	if _, err := exec.LookPath("kubectl"); err != nil {
		s.say("(no kubectl here: make kubectl builds bin/kubectl)")
	}
	if s.cluster != nil {
		s.exploreNode()
	}
	if s.scene != nil {
		s.exploreEBPF()
	}
	s.say("")
	s.say("What changes in the ConfigMaps of %s shows here.", namespace)
	s.followed = namespace
}

// follow prints what changes in a namespace's ConfigMaps until the context ends.
func (s *session) follow(ctx context.Context, namespace string) {
	var before map[string]map[string]string
	for {
		if now, err := s.data(ctx, namespace); err == nil {
			if before != nil {
				s.showDifference(before, now)
			}
			before = now
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// data returns the data of the operator's ConfigMaps in a namespace, by name.
func (s *session) data(ctx context.Context, namespace string) (map[string]map[string]string, error) {
	list := &corev1.ConfigMapList{}
	if err := s.client.List(ctx, list, client.InNamespace(namespace), client.HasLabels{v1alpha1.LabelGeneratedBy}); err != nil {
		return nil, err
	}
	all := map[string]map[string]string{}
	for _, cm := range list.Items {
		all[cm.Name] = cm.Data
	}
	return all, nil
}

func (s *session) showDifference(before, now map[string]map[string]string) {
	for name := range before {
		if _, still := now[name]; !still {
			s.say("%s is gone", s.styled(bold, name))
		}
	}
	for name, data := range now {
		old, had := before[name]
		switch differ := changes(old, data); {
		case !had:
			s.say("%s is new", s.styled(bold, name))
			s.showChanges(differ)
		case len(differ) > 0:
			s.say("%s changed", s.styled(bold, name))
			s.showChanges(differ)
		}
	}
}
