// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// settle is how long changes of a config's pods are collected before its status
// is computed.
const settle = 50 * time.Millisecond

// SetUp adds the controller to the manager.
func (r *Reconciler) SetUp(mgr ctrl.Manager, workers int, timeout time.Duration) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named(telemetry.PCMC).
		For(&v1alpha1.PodConfigMapConfig{}).
		WatchesRawSource(&changes{r}).
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
