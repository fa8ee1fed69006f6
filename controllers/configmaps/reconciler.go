// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/retry"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=configmaps,verbs=get;list;watch;create;update;patch;delete
// +kubebuilder:rbac:groups=podconfig.example.com,resources=podconfigmapconfigs,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Options are what a Reconciler needs.
type Options struct {
	Client     corev1client.CoreV1Interface
	Pods       *observed.Pods
	ConfigMaps *observed.ConfigMaps
	Ledger     *ledger.Ledger
	Events     events.EventRecorder
	Metrics    *Metrics
	// MaxRetries is how many failures in a row a pod may have before it is
	// retried at the ResyncPeriod only.
	MaxRetries   int
	ResyncPeriod time.Duration
}

// Reconciler brings the ConfigMaps of one pod at a time to their plan. Many
// workers may share it.
type Reconciler struct {
	Options
	applier   *applier
	registry  *registry
	waiting   *waiting
	holds     *holds
	pace      *pace
	retries   *retry.Backoff
	departed  *departed
	inherited *inherited
}

// NewReconciler returns a Reconciler.
func NewReconciler(o Options) *Reconciler {
	return &Reconciler{
		Options:   o,
		applier:   &applier{client: o.Client, configMaps: o.ConfigMaps, metrics: o.Metrics},
		registry:  newRegistry(),
		waiting:   newWaiting(),
		holds:     newHolds(o.ResyncPeriod, time.Now),
		pace:      newPace(minUpdateInterval, time.Now),
		retries:   retry.New(o.MaxRetries, o.ResyncPeriod),
		departed:  newDeparted(time.Now),
		inherited: newInherited(),
	}
}

// Reconcile brings one pod's ConfigMaps to its plan. Its errors are logged,
// counted and retried here, so that the retries of O4 are the only ones.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	began := time.Now()
	seen := r.observe(req.NamespacedName)
	if seen.pod == nil {
		// Not timed: that would begin anew the series of a namespace that ended.
		return r.sweep(ctx, req.NamespacedName, seen.owned), nil
	}
	defer func() { r.Metrics.Took(telemetry.Pod, req.Namespace, time.Since(began)) }()
	r.departed.returned(req.NamespacedName)
	report := newReport(r, seen.pod)
	r.carryOut(ctx, makePlan(seen), report)
	return report.finish(ctx), nil
}

// observe reads, from memory alone, what planning needs.
func (r *Reconciler) observe(key types.NamespacedName) observation {
	seen := observation{pod: r.Pods.Get(key), owned: r.ConfigMaps.OwnedBy(key)}
	if seen.pod == nil {
		return seen
	}
	for _, config := range r.registry.inNamespace(key.Namespace) {
		if !config.Matches(seen.pod) {
			r.Ledger.Forget(config.UID, key.Name)
			continue
		}
		t := target{config: config, name: ConfigMapName(key.Name, config.Name)}
		t.holder = r.holder(types.NamespacedName{Namespace: key.Namespace, Name: t.name}, key, seen.owned)
		t.foreign = t.holder == nil && r.holds.left(holdKey{key, t.name}) > 0
		seen.targets = append(seen.targets, t)
	}
	return seen
}

// holder returns the ConfigMap of that name. For what the pod owns, owned is
// ahead of the cache: it includes what was just written.
func (r *Reconciler) holder(cm, pod types.NamespacedName, owned []*observed.ConfigMap) *observed.ConfigMap {
	for _, c := range owned {
		if c.Name == cm.Name {
			return c
		}
	}
	if c := r.ConfigMaps.Get(cm); c != nil && c.Owner() != pod {
		return c
	}
	return nil
}

// carryOut makes the steps happen and reports what became of each. Their calls are
// made beside each other, for they are about different ConfigMaps: a pod waits as
// long for many as for one.
func (r *Reconciler) carryOut(ctx context.Context, steps []step, report *report) {
	steps = slices.DeleteFunc(steps, func(s step) bool {
		late := s.verb == update && report.paced > 0
		if late {
			report.putOff() // what is known of it stays
		}
		return late
	})
	if slices.ContainsFunc(steps, func(s step) bool { return s.verb == update }) {
		r.pace.updated(report.pod.Key())
	}
	for i, err := range r.applier.carryOutAll(ctx, report.pod, steps) {
		s := &steps[i]
		if s.verb == create && apierrors.IsAlreadyExists(err) {
			err = r.takeUnseen(ctx, s, report)
		}
		switch {
		case err == nil:
			report.done(s)
		case apifailure.IsTerminating(err):
			report.gone(s)
		default:
			report.failed(s, err)
		}
	}
}

// takeUnseen handles a name that is taken by a ConfigMap that the caches do not
// show: somebody removed our label, it is foreign, or the cache is behind. One
// live look decides.
func (r *Reconciler) takeUnseen(ctx context.Context, s *step, report *report) error {
	pod := report.pod
	// Wait first, look then: a deletion between the two must not be missed.
	report.wait(s.name)
	found, err := r.applier.live(ctx, pod.Namespace.Value(), s.name)
	if err != nil {
		return err
	}
	again := planTarget(pod, &target{config: s.config, name: s.name, holder: found})
	if again.failure == nil {
		*s = again
		report.waitNoMore(s.name)
		return r.applier.carryOut(ctx, pod, s)
	}
	s.verb, s.current, s.failure = keep, found, again.failure
	if found.Config.Value() == "" {
		report.requeueAfter(r.holds.hold(holdKey{pod.Key(), s.name}))
	}
	return nil
}

// sweep looks after what a pod that is gone left behind. Kubernetes' garbage
// collector removes it; only what is still there after the grace is removed
// here, after a live look at the pod: a cache may be behind.
func (r *Reconciler) sweep(ctx context.Context, pod types.NamespacedName, owned []*observed.ConfigMap) ctrl.Result {
	r.forget(pod)
	if wait := r.departed.graceLeft(pod); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}
	}
	if err := r.sweepAll(ctx, pod, owned); err != nil && !apifailure.IsTerminating(err) {
		r.Metrics.failed(pod.Namespace, apifailure.Within(ctx, err))
		wait, _ := r.retries.Failed(pod, err)
		logging.Warning(klog.FromContext(ctx), "Leftover ConfigMap stays for now", "pod", pod, "err", err, "retryIn", wait)
		return ctrl.Result{RequeueAfter: wait}
	}
	r.retries.Succeeded(pod)
	r.departed.returned(pod)
	r.endNamespace(pod.Namespace)
	return ctrl.Result{}
}

func (r *Reconciler) sweepAll(ctx context.Context, pod types.NamespacedName, owned []*observed.ConfigMap) error {
	leftovers := slices.DeleteFunc(owned, func(cm *observed.ConfigMap) bool { return !cm.Ours() || cm.Deleting })
	if len(leftovers) == 0 {
		return nil
	}
	live, err := r.Client.Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("looking whether pod %q is gone: %w", pod.Name, err)
	}
	for _, cm := range leftovers {
		if err == nil && live.UID == cm.OwnerUID {
			continue // the cache is behind
		}
		if err := r.applier.delete(ctx, cm); err != nil {
			return err
		}
	}
	return nil
}

// forget drops what is kept in memory of a pod that is gone.
func (r *Reconciler) forget(pod types.NamespacedName) {
	for _, config := range r.registry.inNamespace(pod.Namespace) {
		r.Ledger.Forget(config.UID, pod.Name)
	}
	for _, name := range r.waiting.set(pod, nil) {
		r.holds.release(holdKey{pod, name})
	}
	r.inherited.take(pod)
}

// endNamespace ends the metrics of a namespace in which nothing is left.
func (r *Reconciler) endNamespace(namespace string) {
	if len(r.registry.inNamespace(namespace)) == 0 && len(r.Pods.InNamespace(namespace)) == 0 {
		r.Metrics.forgetNamespace(namespace)
	}
}
