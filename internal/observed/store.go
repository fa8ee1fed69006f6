// SPDX-License-Identifier: Apache-2.0

package observed

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// store is one kind's informers: one for all namespaces, or one for each that
// is watched. It is a manager's Runnable that every replica runs, so that a
// standby takes over with warm caches.
type store[T any] struct {
	source source
	// informers by namespace; the key is "" where all are watched.
	informers map[string]cache.SharedIndexInformer
}

// Pods are the pods of the watched namespaces.
type Pods struct{ *store[Pod] }

// NewPods returns a store of pods. Without namespaces it watches all. Handlers
// see every pod again at each resync.
func NewPods(client rest.Interface, namespaces []string, resync time.Duration) (*Pods, error) {
	p := &Pods{}
	var err error
	p.store, err = newStore[Pod](client, source{
		resource: "pods", fresh: func() object { return &corev1.Pod{} }, fields: podFields, compact: p.compact,
		indexers: cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
	}, namespaces, resync)
	return p, err
}

// compact may see what it made before: informers ask that a transform can be
// applied twice.
func (p *Pods) compact(obj any) (any, error) {
	if pod, ok := obj.(*corev1.Pod); ok {
		seen := describePod(pod)
		seen.settle(p.Get(seen.Key()))
		return seen, nil
	}
	return obj, nil
}

// InNamespace returns all pods of a namespace.
func (p *Pods) InNamespace(namespace string) []*Pod {
	return p.indexed(namespace, cache.NamespaceIndex, namespace)
}

func newStore[T any](client rest.Interface, s source, namespaces []string, resync time.Duration) (*store[T], error) {
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	store := &store[T]{source: s, informers: map[string]cache.SharedIndexInformer{}}
	for _, namespace := range namespaces {
		informer := cache.NewSharedIndexInformerWithOptions(s.listWatch(client, namespace), s.fresh(),
			cache.SharedIndexInformerOptions{ResyncPeriod: resync, Indexers: s.indexers})
		if err := informer.SetTransform(s.compact); err != nil {
			return nil, fmt.Errorf("setting the transform of %s: %w", s.resource, err)
		}
		store.informers[namespace] = informer
	}
	return store, nil
}

// Start runs the informers until the context ends.
func (s *store[T]) Start(ctx context.Context) error {
	var group errgroup.Group
	for namespace, informer := range s.informers {
		klog.FromContext(ctx).V(4).Info("watching", "kind", fmt.Sprintf("%T", *new(T)), "namespace", namespace)
		group.Go(func() error { informer.RunWithContext(ctx); return nil })
	}
	return group.Wait()
}

// NeedLeaderElection is false: standbys watch, too.
func (s *store[T]) NeedLeaderElection() bool { return false }

// HasSynced tells whether the first list of every informer is in its store.
func (s *store[T]) HasSynced() bool {
	for _, informer := range s.informers {
		if !informer.HasSynced() {
			return false
		}
	}
	return true
}

// Handle registers an event handler. The registrations tell when it has seen
// the first list.
func (s *store[T]) Handle(h cache.ResourceEventHandler) ([]cache.ResourceEventHandlerRegistration, error) {
	var all []cache.ResourceEventHandlerRegistration
	for _, informer := range s.informers {
		registration, err := informer.AddEventHandler(h)
		if err != nil {
			return nil, fmt.Errorf("watching %T: %w", *new(T), err)
		}
		all = append(all, registration)
	}
	return all, nil
}

func (s *store[T]) indexer(namespace string) cache.Indexer {
	if informer, ok := s.informers[metav1.NamespaceAll]; ok {
		return informer.GetIndexer()
	}
	if informer, ok := s.informers[namespace]; ok {
		return informer.GetIndexer()
	}
	return nil
}

// version is the resource version up to which the store has seen everything.
func (s *store[T]) version(namespace string) string {
	if indexer := s.indexer(namespace); indexer != nil {
		return indexer.LastStoreSyncResourceVersion()
	}
	return ""
}

// Get returns the object, or nil.
func (s *store[T]) Get(key types.NamespacedName) *T {
	indexer := s.indexer(key.Namespace)
	if indexer == nil {
		return nil
	}
	// A store in memory has no error to give.
	if obj, exists, _ := indexer.GetByKey(key.String()); exists {
		return obj.(*T)
	}
	return nil
}

func (s *store[T]) indexed(namespace, index, value string) []*T {
	indexer := s.indexer(namespace)
	if indexer == nil {
		return nil
	}
	// The index exists: its kind's constructor made it.
	objs, _ := indexer.ByIndex(index, value)
	all := make([]*T, len(objs))
	for i, obj := range objs {
		all[i] = obj.(*T)
	}
	return all
}
