// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// settle is how long changes of a config's pods are collected before its status
// is computed.
const settle = 50 * time.Millisecond

// SetUp adds the controller to the manager.
func (r *Reconciler) SetUp(mgr ctrl.Manager, workers int, timeout time.Duration) error {
	builder := ctrl.NewControllerManagedBy(mgr).
		Named(telemetry.PCMC).
		For(&v1alpha1.PodConfigMapConfig{}).
		WatchesRawSource(&changes{r})
	if r.EBPFEnabled {
		builder = builder.WatchesRawSource(&agents{Reconciler: r, informers: mgr.GetCache()})
	}
	err := builder.
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, ReconciliationTimeout: timeout}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("making the status controller: %w", err)
	}
	return nil
}

// changes brings what the ledger announces to the queue. It is a source of the
// controller.
type changes struct{ *Reconciler }

// Start is part of source.Source.
func (c *changes) Start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	c.Metrics.Queue(telemetry.PCMC, queue.Len)
	c.Ledger.OnChange(func(config types.NamespacedName) {
		queue.AddAfter(reconcile.Request{NamespacedName: config}, settle)
	})
	return nil
}

// WaitForSync returns when the pods are known: before, no pod would match.
func (c *changes) WaitForSync(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.Pods.HasSynced) {
		return errors.Join(errors.New("waiting for the first list of pods"), context.Cause(ctx))
	}
	return nil
}

// agents brings to the queue what concerns a config's eBPF: the reports of the
// node agents, how their DaemonSets are, and on which nodes pods run. It is a
// source of the controller.
type agents struct {
	*Reconciler
	informers ctrlcache.Informers

	registered []cache.ResourceEventHandlerRegistration
}

// Start is part of source.Source.
func (a *agents) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	informer, err := a.informers.GetInformer(ctx, &v1alpha1.EBPFNode{})
	if err != nil {
		return fmt.Errorf("watching EBPFNodes: %w", err)
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { a.reported(ctx, queue, obj) },
		UpdateFunc: func(_, obj any) { a.reported(ctx, queue, obj) },
		DeleteFunc: func(obj any) {
			if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
				_, name, _ := cache.SplitMetaNamespaceKey(key)
				if a.reports.drop(name) {
					a.enqueueAll(ctx, queue, "")
				}
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watching EBPFNodes: %w", err)
	}
	of, err := a.Pods.Handle(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, initial bool) {
			if pod := obj.(*observed.Pod); !initial && pod.NodeName.Value() != "" {
				a.enqueueAll(ctx, queue, pod.Namespace.Value())
			}
		},
		UpdateFunc: func(before, obj any) {
			if was, is := before.(*observed.Pod), obj.(*observed.Pod); was.NodeName != is.NodeName || was.Phase != is.Phase {
				a.enqueueAll(ctx, queue, is.Namespace.Value())
			}
		},
	})
	if err != nil {
		return err
	}
	a.registered = append(of, registration)
	a.Agents.OnChange(func() { a.enqueueAll(ctx, queue, "") })
	return nil
}

// WaitForSync returns when the reports are known: before, every node would seem
// to have none.
func (a *agents) WaitForSync(ctx context.Context) error {
	for _, registration := range a.registered {
		if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
			return errors.Join(errors.New("waiting for the first list of EBPFNodes"), context.Cause(ctx))
		}
	}
	return nil
}

// reported takes a report in. What a detached node told before is no longer so.
func (a *agents) reported(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request], obj any) {
	node, ok := obj.(*v1alpha1.EBPFNode)
	if !ok {
		return
	}
	if meta.IsStatusConditionTrue(node.Status.Conditions, v1alpha1.ConditionDetached) {
		if a.reports.drop(node.Name) {
			a.enqueueAll(ctx, queue, "")
		}
		return
	}
	changed, all := a.reports.set(node.Name, node.Status.Configs)
	if all {
		a.enqueueAll(ctx, queue, "")
		return
	}
	for _, config := range changed {
		queue.AddAfter(reconcile.Request{NamespacedName: config}, settle)
	}
}

// enqueueAll has a look at every config that asks for eBPF, in one namespace or,
// where it is empty, in all.
func (a *agents) enqueueAll(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request], namespace string) {
	configs := &v1alpha1.PodConfigMapConfigList{}
	if err := a.Client.List(ctx, configs, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		klog.FromContext(ctx).Error(err, "Could not list the configs that ask for eBPF")
		return
	}
	for i := range configs.Items {
		if configs.Items[i].Spec.EBPFConfig.Requested() {
			queue.AddAfter(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&configs.Items[i])}, settle)
		}
	}
}
