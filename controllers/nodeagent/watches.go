// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
)

// Watches tell the reconciler of the node's pods and of the configs. They are
// informers of our own: those of controller-runtime do not start without an API
// server, and an agent has work to do then, too.
type Watches struct {
	informers []cache.SharedIndexInformer
	handled   []cache.ResourceEventHandlerRegistration
}

// Sources are what Watches reads from.
type Sources struct {
	Core, Configs rest.Interface
	// Node is the name of the node whose pods are watched.
	Node string
	// Namespaces are those that are watched; none: all.
	Namespaces []string
	// Resync is how often every pod is looked at again.
	Resync time.Duration
}

// NewWatches makes the informers; nothing is read before Start.
func NewWatches(s Sources, r *Reconciler) (*Watches, error) {
	w := &Watches{}
	namespaces := s.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	for _, namespace := range namespaces {
		pods := cache.NewFilteredListWatchFromClient(s.Core, "pods", namespace, func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", s.Node).String()
		})
		if err := w.add(cache.ToListWatcherWithWatchListSemantics(pods, s.Core), &corev1.Pod{}, compactPod, s.Resync, r.podEvents()); err != nil {
			return nil, fmt.Errorf("watching pods: %w", err)
		}
		configs := cache.NewFilteredListWatchFromClient(s.Configs, "podconfigmapconfigs", namespace, func(*metav1.ListOptions) {})
		if err := w.add(cache.ToListWatcherWithWatchListSemantics(configs, s.Configs), &v1alpha1.PodConfigMapConfig{}, compactConfig, 0, r.configEvents()); err != nil {
			return nil, fmt.Errorf("watching PodConfigMapConfigs: %w", err)
		}
	}
	return w, nil
}

func (w *Watches) add(from cache.ListerWatcher, example runtime.Object, compact cache.TransformFunc, resync time.Duration, h cache.ResourceEventHandler) error {
	informer := cache.NewSharedIndexInformerWithOptions(from, example, cache.SharedIndexInformerOptions{ResyncPeriod: resync})
	if err := informer.SetTransform(compact); err != nil {
		return err
	}
	handled, err := informer.AddEventHandler(h)
	if err != nil {
		return err
	}
	w.informers, w.handled = append(w.informers, informer), append(w.handled, handled)
	return nil
}

// Start runs the informers until the context ends.
func (w *Watches) Start(ctx context.Context) error {
	var group errgroup.Group
	for _, informer := range w.informers {
		group.Go(func() error { informer.RunWithContext(ctx); return nil })
	}
	return group.Wait()
}

// WaitForFirst returns when the reconciler knows every object of the first
// lists, or when the context ends.
func (w *Watches) WaitForFirst(ctx context.Context) error {
	var checks []cache.DoneChecker
	for _, h := range w.handled {
		checks = append(checks, h.HasSyncedChecker())
	}
	if !cache.WaitFor(ctx, "", checks...) {
		return context.Cause(ctx)
	}
	return nil
}

// compactPod and compactConfig may see what they made before: informers ask that
// a transform can be applied twice.
func compactPod(obj any) (any, error) {
	if pod, ok := obj.(*corev1.Pod); ok {
		return NewPod(pod), nil
	}
	return obj, nil
}

func compactConfig(obj any) (any, error) {
	if pcmc, ok := obj.(*v1alpha1.PodConfigMapConfig); ok {
		return Compile(pcmc), nil
	}
	return obj, nil
}

func (r *Reconciler) podEvents() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if pod, ok := obj.(*Pod); ok {
				r.intake.podSeen(pod)
			}
		},
		UpdateFunc: func(before, after any) {
			old, okOld := before.(*Pod)
			pod, ok := after.(*Pod)
			if !ok || !okOld {
				return
			}
			if old.UID != pod.UID || old.ObjectUID != pod.ObjectUID {
				r.intake.podGone(old)
			}
			if resync := old.ResourceVersion == pod.ResourceVersion; resync || !old.same(pod) {
				r.intake.podSeen(pod)
			}
		},
		DeleteFunc: func(obj any) {
			if pod, ok := untombed(obj).(*Pod); ok {
				r.intake.podGone(pod)
			}
		},
	}
}

func (r *Reconciler) configEvents() cache.ResourceEventHandler {
	seen := func(obj any) {
		if config, ok := obj.(*Config); ok {
			r.intake.configSeen(config)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    seen,
		UpdateFunc: func(_, obj any) { seen(obj) },
		DeleteFunc: func(obj any) {
			if config, ok := untombed(obj).(*Config); ok {
				r.intake.configGone(config.Key())
			}
		},
	}
}

// untombed returns the last known state of an object whose deletion the watch
// missed.
func untombed(obj any) any {
	if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		return tomb.Obj
	}
	return obj
}
