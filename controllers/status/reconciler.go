// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/retry"
	"github.com/podconfigmap/podconfigmap-controller/internal/telemetry"
)

// +kubebuilder:rbac:groups=podconfig.example.com,resources=podconfigmapconfigs,verbs=list;watch
// +kubebuilder:rbac:groups=podconfig.example.com,resources=podconfigmapconfigs/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

const (
	// writeInterval is the least time between two writes of one config's status.
	writeInterval = time.Second
	// progressInterval is the same while work is under way: a status is dear to the
	// API server, which checks the whole config against its rules each time.
	progressInterval = 5 * time.Second
	// lookInterval is the least time between two looks at all pods of a config
	// while they are being worked on.
	lookInterval = 500 * time.Millisecond
	// patience is how long pods may be worked on before the status says so: a
	// pod that is done in a moment should not make a condition flap.
	patience = time.Second
	// firstPatience is the same for a config that was settled before this manager
	// began: it has to look at every pod once, and will mostly find all as it was.
	firstPatience = 10 * time.Second
)

// Options are what a Reconciler needs.
type Options struct {
	Client      client.Client
	Pods        *observed.Pods
	Ledger      *ledger.Ledger
	Events      events.EventRecorder
	Metrics     *Metrics
	EBPFEnabled bool
	// MaxRetries is how many failures in a row a config's status may have before
	// it is retried at the ResyncPeriod only.
	MaxRetries   int
	ResyncPeriod time.Duration
}

// Reconciler writes the status of one config at a time.
type Reconciler struct {
	Options
	memory  memory
	retries *retry.Backoff
}

// NewReconciler returns a Reconciler.
func NewReconciler(o Options) *Reconciler {
	return &Reconciler{
		Options: o,
		memory:  memory{now: time.Now, configs: map[types.NamespacedName]times{}},
		retries: retry.New(o.MaxRetries, o.ResyncPeriod),
	}
}

// Reconcile computes a config's status and writes it where it differs.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	began := time.Now()
	pcmc := &v1alpha1.PodConfigMapConfig{}
	if err := r.Client.Get(ctx, req.NamespacedName, pcmc); err != nil {
		if apierrors.IsNotFound(err) {
			return ctrl.Result{}, r.forget(ctx, req.NamespacedName)
		}
		return ctrl.Result{}, fmt.Errorf("reading PodConfigMapConfig %q: %w", req.Name, err)
	}
	defer func() { r.Metrics.Took(telemetry.PCMC, req.Namespace, time.Since(began)) }()
	if wait := r.memory.pause(req.NamespacedName); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	head := r.Ledger.Begin(pcmc.UID)
	s := summarize(r.Ledger, head, pcmc, r.matching(pcmc))
	settled := pcmc.Status.ObservedGeneration == pcmc.Generation
	if wait := r.memory.patience(req.NamespacedName, s.unfinished(), settled); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	return r.write(ctx, pcmc, &s)
}

// matching returns the names of the pods that the config selects. A selector
// that cannot be read, which the CRD's schema refuses, selects none: the ledger
// tells of it as the config's own problem.
func (r *Reconciler) matching(pcmc *v1alpha1.PodConfigMapConfig) []string {
	selector, err := metav1.LabelSelectorAsSelector(pcmc.Spec.LabelSelector())
	if err != nil {
		return nil
	}
	var names []string
	for _, pod := range r.Pods.InNamespace(pcmc.Namespace) {
		if selector.Matches(pod.Labels) {
			names = append(names, pod.Name)
		}
	}
	return names
}

func (r *Reconciler) write(ctx context.Context, pcmc *v1alpha1.PodConfigMapConfig, s *summary) (ctrl.Result, error) {
	status := statusOf(pcmc, s, r.EBPFEnabled)
	r.Metrics.show(pcmc, status, s.present)
	if !changed(&pcmc.Status, status) {
		return ctrl.Result{}, nil
	}
	before := pcmc.DeepCopy()
	pcmc.Status = *status
	r.memory.wrote(client.ObjectKeyFromObject(pcmc))
	err := r.Client.Status().Patch(ctx, pcmc, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}),
		client.FieldOwner(observed.FieldManager))
	switch {
	case apierrors.IsConflict(err):
		// The cache is behind; its next event, or this look, has the newer one.
		return ctrl.Result{RequeueAfter: writeInterval}, nil
	case apierrors.IsNotFound(err):
		return ctrl.Result{}, nil
	case err != nil:
		return r.failed(ctx, pcmc, fmt.Errorf("writing the status of PodConfigMapConfig %q: %w", pcmc.Name, err)), nil
	}
	r.retries.Succeeded(client.ObjectKeyFromObject(pcmc))
	r.announce(pcmc, before.Status.Conditions)
	return ctrl.Result{}, nil
}

// failed tells when to try again. A status that cannot be written cannot say so
// itself: an Event does.
func (r *Reconciler) failed(ctx context.Context, pcmc *v1alpha1.PodConfigMapConfig, err error) ctrl.Result {
	r.Metrics.Failed(telemetry.PCMC, pcmc.Namespace, string(apifailure.Within(ctx, err)))
	wait, exhausted := r.retries.Failed(client.ObjectKeyFromObject(pcmc), err)
	if !exhausted {
		logging.Warning(klog.FromContext(ctx), "Will try again", "pcmc", client.ObjectKeyFromObject(pcmc), "err", err, "retryIn", wait)
		return ctrl.Result{RequeueAfter: wait}
	}
	klog.FromContext(ctx).Error(err, "Gave up on a config's status for now", "pcmc", client.ObjectKeyFromObject(pcmc), "retryIn", wait)
	r.Events.Eventf(pcmc, nil, corev1.EventTypeWarning, v1alpha1.ReasonRetriesExhausted, "UpdateStatus", "%s",
		eventnote.Shorten(fmt.Sprintf("%v; gave up after %d tries in a row, next try within %s", err, r.retries.Most(), wait), eventnote.MaxBytes))
	return ctrl.Result{RequeueAfter: wait}
}

// announce emits an Event for each condition that turned bad, or good again.
func (r *Reconciler) announce(pcmc *v1alpha1.PodConfigMapConfig, before []metav1.Condition) {
	for _, name := range []string{v1alpha1.ConditionConfigMapsSynced, v1alpha1.ConditionEBPFReady} {
		was, is := meta.FindStatusCondition(before, name), meta.FindStatusCondition(pcmc.Status.Conditions, name)
		if is == nil || was != nil && was.Reason == is.Reason {
			continue
		}
		switch is.Reason {
		case v1alpha1.ReasonProgressing, v1alpha1.ReasonNotRequested:
		case v1alpha1.ReasonSynced, v1alpha1.ReasonAttached:
			r.Events.Eventf(pcmc, nil, corev1.EventTypeNormal, is.Reason, "UpdateStatus", "%s", eventnote.Shorten(is.Message, eventnote.MaxBytes))
		default:
			r.Events.Eventf(pcmc, nil, corev1.EventTypeWarning, is.Reason, "UpdateStatus", "%s", eventnote.Shorten(is.Message, eventnote.MaxBytes))
		}
	}
}

// forget ends what is kept of a config that is gone.
func (r *Reconciler) forget(ctx context.Context, config types.NamespacedName) error {
	r.memory.forget(config)
	r.retries.Succeeded(config)
	r.Metrics.forget(config)
	left := &v1alpha1.PodConfigMapConfigList{}
	if err := r.Client.List(ctx, left, client.InNamespace(config.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing PodConfigMapConfigs of namespace %q: %w", config.Namespace, err)
	}
	if len(left.Items) == 0 {
		r.Metrics.ForgetNamespace(telemetry.PCMC, config.Namespace)
	}
	return nil
}

// memory holds times of each config that the status itself does not.
type memory struct {
	mu      sync.Mutex
	now     func() time.Time
	configs map[types.NamespacedName]times
}

// times are zero where something did not happen.
type times struct{ written, looked, workingSince time.Time }

// pause tells how long it is until the config's pods are worth a look: until the
// status may be written again, or until work has gone on. Zero begins the look.
func (m *memory) pause(config types.NamespacedName) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, now := m.configs[config], m.now()
	wait := writeInterval - now.Sub(t.written)
	if !t.workingSince.IsZero() {
		wait = max(wait, lookInterval-now.Sub(t.looked))
	}
	if wait <= 0 {
		t.looked = now
		m.configs[config] = t
	}
	return max(0, wait)
}

// patience tells how long work that is under way is not told yet. A settled
// config's status said before that all was done.
func (m *memory) patience(config types.NamespacedName, unfinished, settled bool) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, now := m.configs[config], m.now()
	if !unfinished {
		t.workingSince = time.Time{}
		m.configs[config] = t
		return 0
	}
	if t.workingSince.IsZero() {
		t.workingSince = now
	}
	m.configs[config] = t
	bear := patience
	if settled && t.written.IsZero() {
		bear = firstPatience
	}
	return max(0, bear-now.Sub(t.workingSince), progressInterval-now.Sub(t.written))
}

func (m *memory) wrote(config types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.configs[config]
	t.written = m.now()
	m.configs[config] = t
}

func (m *memory) forget(config types.NamespacedName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.configs, config)
}
