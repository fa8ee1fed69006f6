// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// crowd is the priority of work that concerns many pods at once, such as the
// first list, a resync or a config's change: a single pod's own change does not
// wait behind it.
const crowd = -100

// SetUp adds the controller to the manager.
func (r *Reconciler) SetUp(mgr ctrl.Manager, workers int, timeout time.Duration) error {
	c, err := controller.New("pod", mgr, controller.Options{
		Reconciler:              r,
		MaxConcurrentReconciles: workers,
		ReconciliationTimeout:   timeout,
	})
	if err != nil {
		return fmt.Errorf("making the pod controller: %w", err)
	}
	if err := c.Watch(&watches{Reconciler: r, cache: mgr.GetCache()}); err != nil {
		return fmt.Errorf("watching for the pod controller: %w", err)
	}
	return nil
}

// watches turns events of pods, ConfigMaps and configs into pods to look at. It
// is a source of the controller.
type watches struct {
	*Reconciler
	cache  ctrlcache.Cache
	queue  priorityqueue.PriorityQueue[reconcile.Request]
	synced []cache.DoneChecker
}

// Start registers the event handlers. It is part of source.Source.
func (w *watches) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	var ok bool
	if w.queue, ok = queue.(priorityqueue.PriorityQueue[reconcile.Request]); !ok {
		return fmt.Errorf("the pod controller needs a priority queue, not a %T", queue)
	}
	w.Metrics.Queue(telemetry.Pod, w.queue.Len)
	configs, err := w.cache.GetInformer(ctx, &v1alpha1.PodConfigMapConfig{}, ctrlcache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watching PodConfigMapConfigs: %w", err)
	}
	configHandler, err := configs.AddEventHandler(w.configEvents())
	if err != nil {
		return fmt.Errorf("watching PodConfigMapConfigs: %w", err)
	}
	podHandlers, err := w.Pods.Handle(w.podEvents())
	if err != nil {
		return err
	}
	configMapHandlers, err := w.ConfigMaps.Handle(w.configMapEvents())
	if err != nil {
		return err
	}
	w.synced = append(w.synced, configHandler.HasSyncedChecker())
	for _, h := range append(podHandlers, configMapHandlers...) {
		w.synced = append(w.synced, h.HasSyncedChecker())
	}
	return nil
}

// WaitForSync returns when every first list has been handled: only then does a
// config that is not there mean that it was deleted. It does not poll, which
// would cost a standby that takes over 100 ms.
func (w *watches) WaitForSync(ctx context.Context) error {
	if !cache.WaitFor(ctx, "", w.synced...) {
		return fmt.Errorf("waiting for the first lists of pods, ConfigMaps and configs: %w", context.Cause(ctx))
	}
	return nil
}

func (w *watches) enqueue(priority int, after time.Duration, pods ...types.NamespacedName) {
	requests := make([]reconcile.Request, len(pods))
	for i, pod := range pods {
		requests[i].NamespacedName = pod
	}
	w.queue.AddWithOpts(priorityqueue.AddOpts{Priority: &priority, After: after}, requests...)
}

func (w *watches) podEvents() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, isInInitialList bool) {
			pod, ok := obj.(*observed.Pod)
			if !ok {
				return
			}
			if isInInitialList {
				w.inherited.add(pod.Key())
			}
			w.enqueue(priorityOf(isInInitialList), 0, pod.Key())
		},
		UpdateFunc: func(before, after any) {
			old, okOld := before.(*observed.Pod)
			pod, ok := after.(*observed.Pod)
			if !ok || !okOld {
				return
			}
			if resync := old.ResourceVersion == pod.ResourceVersion; resync || !old.Same(pod) {
				w.enqueue(priorityOf(resync), 0, pod.Key())
			}
		},
		DeleteFunc: func(obj any) {
			if pod, ok := untombed(obj).(*observed.Pod); ok {
				w.forget(pod.Key())
				w.enqueue(crowd, w.departed.graceLeft(pod.Key()), pod.Key())
				w.endNamespace(pod.Namespace.Value())
			}
		},
	}
}

func priorityOf(crowded bool) int {
	if crowded {
		return crowd
	}
	return 0
}

func (w *watches) configMapEvents() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, isInInitialList bool) {
			cm, ok := obj.(*observed.ConfigMap)
			if !ok {
				return
			}
			if isInInitialList {
				// Its pod comes with the list of pods; this is for one without a pod.
				w.enqueue(crowd, w.departed.graceLeft(cm.Owner()), cm.Owner())
				return
			}
			w.configMapChanged(cm, false)
		},
		UpdateFunc: func(before, after any) {
			cm, ok := after.(*observed.ConfigMap)
			if !ok {
				return
			}
			w.configMapChanged(cm, false)
			if old, ok := before.(*observed.ConfigMap); ok && old.OwnerName != "" && old.Owner() != cm.Owner() {
				w.enqueue(0, 0, old.Owner()) // somebody took it from its pod
			}
		},
		DeleteFunc: func(obj any) {
			if cm, ok := untombed(obj).(*observed.ConfigMap); ok {
				w.configMapChanged(cm, true)
			}
		},
	}
}

// configMapChanged has the ConfigMap's pod looked at, unless the event is the
// echo of our own write, and those that wait for its name.
func (w *watches) configMapChanged(cm *observed.ConfigMap, deleted bool) {
	if echo := w.ConfigMaps.Confirm(cm, deleted); !echo && cm.OwnerName != "" {
		w.enqueue(0, 0, cm.Owner())
	}
	if waiting := w.waiting.on(cm.Key()); len(waiting) > 0 {
		w.enqueue(0, 0, waiting...)
	}
}

func (w *watches) configEvents() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, _ bool) {
			if pcmc, ok := obj.(*v1alpha1.PodConfigMapConfig); ok {
				w.configChanged(pcmc)
			}
		},
		UpdateFunc: func(_, obj any) {
			if pcmc, ok := obj.(*v1alpha1.PodConfigMapConfig); ok {
				w.configChanged(pcmc)
			}
		},
		DeleteFunc: func(obj any) {
			if pcmc, ok := untombed(obj).(*v1alpha1.PodConfigMapConfig); ok {
				w.configGone(types.NamespacedName{Namespace: pcmc.Namespace, Name: pcmc.Name})
			}
		},
	}
}

// configChanged takes in a config's new generation; its status does not matter.
func (w *watches) configChanged(pcmc *v1alpha1.PodConfigMapConfig) {
	key := types.NamespacedName{Namespace: pcmc.Namespace, Name: pcmc.Name}
	old := w.registry.get(key)
	switch {
	case pcmc.DeletionTimestamp != nil:
		if old != nil {
			w.configGone(key)
		}
		return
	case old != nil && old.UID == pcmc.UID && old.Generation == pcmc.Generation:
		return
	case old != nil && old.UID != pcmc.UID:
		w.Ledger.Close(old.UID)
	}
	config := Compile(pcmc)
	if config.Problem != nil {
		w.Metrics.Failed(telemetry.PCMC, key.Namespace, string(apifailure.Template))
	}
	w.registry.put(config)
	w.Ledger.Open(config.UID, key, ledger.Head{Generation: config.Generation, Problem: config.Problem})
	w.fanOut(key.Namespace)
}

// configGone forgets a config; its ConfigMaps are removed pod by pod.
func (w *watches) configGone(key types.NamespacedName) {
	if old := w.registry.get(key); old != nil {
		w.registry.remove(key)
		w.Ledger.Close(old.UID)
	}
	w.fanOut(key.Namespace)
	w.endNamespace(key.Namespace)
}

// fanOut has every pod of a namespace looked at.
func (w *watches) fanOut(namespace string) {
	pods := w.Pods.InNamespace(namespace)
	keys := make([]types.NamespacedName, len(pods))
	for i, pod := range pods {
		keys[i] = pod.Key()
	}
	w.enqueue(crowd, 0, keys...)
}

// untombed returns the last known state of an object whose deletion the watch
// missed.
func untombed(obj any) any {
	if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		return tomb.Obj
	}
	return obj
}
