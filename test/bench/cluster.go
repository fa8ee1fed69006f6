// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/controllers/configmaps"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/test/harness"
)

const (
	populators = 32
	configsPer = 2 // namespace
)

func newCoreClient(config *rest.Config) (corev1client.CoreV1Interface, error) {
	config = rest.CopyConfig(config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return core, nil
}

// forEach calls do for 0 to n-1, from many goroutines at once.
func forEach(ctx context.Context, n, parallel int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range parallel {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return ctx.Err()
				}
				if err := do(ctx, i); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// populate creates the namespaces and the pods, which a kubelet that there is
// not has made Running.
func (b *bench) populate(ctx context.Context) error {
	for i := range b.namespaces {
		if err := b.NewNamespace(ctx, namespaceName(i)); err != nil {
			return err
		}
	}
	b.pods = make([]*observed.Pod, b.options.pods)
	var size atomic.Int64
	err := forEach(ctx, len(b.pods), populators, func(ctx context.Context, i int) error {
		pods := b.core.Pods(namespaceName(i % b.namespaces))
		pod, err := pods.Create(ctx, newPod(namespaceName(i%b.namespaces), i), metav1.CreateOptions{FieldManager: "kube-controller-manager"})
		if err != nil {
			return fmt.Errorf("creating a pod: %w", err)
		}
		pod.Status = running(pod, i)
		if pod, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{FieldManager: "kubelet"}); err != nil {
			return fmt.Errorf("setting the status of a pod: %w", err)
		}
		text, err := json.Marshal(pod)
		size.Add(int64(len(text)))
		b.pods[i] = observed.NewPod(pod)
		return err
	})
	if err != nil {
		return err
	}
	b.table.add("pods", float64(len(b.pods)), "pods")
	b.table.add("size of a pod as JSON", float64(size.Load())/float64(len(b.pods))/1024, "KiB")
	return nil
}

// putConfigs creates the configs of all namespaces, or changes them to another
// variant.
func (b *bench) putConfigs(ctx context.Context, variant int) error {
	for i := range b.namespaces {
		for _, config := range newConfigs(namespaceName(i), variant) {
			old := &v1alpha1.PodConfigMapConfig{}
			err := b.Client.Get(ctx, client.ObjectKeyFromObject(config), old)
			if client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("reading a config: %w", err)
			}
			if err != nil {
				err = b.Client.Create(ctx, config)
			} else {
				old.Spec = config.Spec
				err = b.Client.Update(ctx, old)
			}
			if err != nil {
				return fmt.Errorf("writing a config: %w", err)
			}
		}
	}
	return nil
}

func (b *bench) deleteConfigs(ctx context.Context) error {
	for i := range b.namespaces {
		err := b.Client.DeleteAllOf(ctx, &v1alpha1.PodConfigMapConfig{}, client.InNamespace(namespaceName(i)))
		if err != nil {
			return fmt.Errorf("deleting the configs: %w", err)
		}
	}
	return nil
}

// awaitObserved waits until every config's status says that all of its pods are
// done with its generation.
func (b *bench) awaitObserved(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, harness.Patience, true, func(ctx context.Context) (bool, error) {
		all := &v1alpha1.PodConfigMapConfigList{}
		if err := b.Client.List(ctx, all); err != nil {
			return false, err
		}
		matched := 0
		for i := range all.Items {
			status := &all.Items[i].Status
			if status.ObservedGeneration != all.Items[i].Generation || status.SyncedConfigMaps != status.MatchedPods {
				return false, nil
			}
			matched += int(status.MatchedPods)
		}
		return matched == b.wanted(), nil
	})
	if err != nil {
		return fmt.Errorf("waiting until the configs' status is up to date: %w", err)
	}
	return nil
}

// wanted is how many ConfigMaps there should be.
func (b *bench) wanted() int { return configsPer * len(b.pods) }

// eachWanted visits every ConfigMap that should exist for a variant of the
// configs, as the operator would create it.
func (b *bench) eachWanted(variant int, visit func(i int, pod *observed.Pod, config *configmaps.Config) error) error {
	compiled := map[string][]*configmaps.Config{}
	for i := range b.namespaces {
		for _, config := range newConfigs(namespaceName(i), variant) {
			compiled[config.Namespace] = append(compiled[config.Namespace], configmaps.Compile(config))
		}
	}
	for i, pod := range b.pods {
		for j, config := range compiled[pod.Namespace.Value()] {
			if err := visit(configsPer*i+j, pod, config); err != nil {
				return err
			}
		}
	}
	return nil
}

// verify compares all ConfigMaps with what they should be.
func (b *bench) verify(ctx context.Context, variant int) error {
	found := map[types.NamespacedName]*observed.ConfigMap{}
	for i := range b.namespaces {
		all, err := b.core.ConfigMaps(namespaceName(i)).List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("listing the ConfigMaps: %w", err)
		}
		for j := range all.Items {
			cm := observed.NewConfigMap(&all.Items[j])
			found[cm.Key()] = cm
		}
	}
	err := b.eachWanted(variant, func(_ int, pod *observed.Pod, config *configmaps.Config) error {
		want, failure := configmaps.New(pod, config)
		if failure != nil {
			return failure
		}
		key := client.ObjectKeyFromObject(want)
		cm := found[key]
		if cm == nil || cm.Data != observed.DigestOf(want.Data) || cm.OwnerUID != pod.UID {
			return fmt.Errorf("verifying the ConfigMaps: %s is not as it should be", key)
		}
		delete(found, key)
		return nil
	})
	if err == nil && len(found) > 0 {
		err = errors.New("verifying the ConfigMaps: there are more than there should be")
	}
	return err
}
