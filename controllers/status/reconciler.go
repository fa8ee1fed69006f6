// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"fmt"
	"slices"
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
	"github.com/podconfigmap/podconfigmap-controller/controllers/subsystem"
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
	Client  client.Client
	Pods    *observed.Pods
	Ledger  *ledger.Ledger
	Events  events.EventRecorder
	Metrics *Metrics
	// EBPFEnabled is the feature flag; Agents shows how the agents' DaemonSets are,
	// which live, with their reports, in AgentNamespace. Without the flag neither is
	// read.
	EBPFEnabled    bool
	Agents         *subsystem.Board
	AgentNamespace string
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
	reports *reports
}

// NewReconciler returns a Reconciler.
func NewReconciler(o Options) *Reconciler {
	return &Reconciler{
		Options: o,
		memory:  memory{now: time.Now, configs: map[types.NamespacedName]times{}},
		retries: retry.New(o.MaxRetries, o.ResyncPeriod),
		reports: newReports(),
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
	pods := r.matching(pcmc)
	s := summarize(r.Ledger, head, pcmc, namesOf(pods))
	settled := pcmc.Status.ObservedGeneration == pcmc.Generation
	if wait := r.memory.patience(req.NamespacedName, s.unfinished(), settled); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	ebpf, counts, wait := r.ebpf(pcmc, pods)
	return r.write(ctx, pcmc, statusOf(pcmc, &s, ebpf, counts), s.present, wait)
}

// ebpf computes the condition of eBPF and its counts. Where it holds back what is
// new, wait is how long.
func (r *Reconciler) ebpf(pcmc *v1alpha1.PodConfigMapConfig, pods []*observed.Pod) (_ metav1.Condition, _ *v1alpha1.EBPFStatus, wait time.Duration) {
	key, facts := client.ObjectKeyFromObject(pcmc), &ebpfFacts{enabled: r.EBPFEnabled, namespace: r.AgentNamespace}
	if facts.enabled {
		facts.agents = r.Agents.State()
		facts.nodes = nodesOf(pods)
		facts.reports, facts.reporting = r.reports.of(key, facts.nodes)
	}
	c, counts := ebpfReady(pcmc, facts)
	left := r.memory.reportPatience(key, c.Reason == v1alpha1.ReasonProgressing)
	is, kept := held(pcmc.Status.Conditions, c, pcmc.Generation, facts.agents.Known, left > 0)
	if !kept {
		return c, counts, 0
	}
	if !facts.agents.Known {
		counts = pcmc.Status.EBPF // as the condition, until the Board tells of a change
	}
	return is, counts, left
}

func namesOf(pods []*observed.Pod) []string {
	names := make([]string, len(pods))
	for i, pod := range pods {
		names[i] = pod.Name
	}
	return names
}

// matching returns the pods that the config selects. A selector
// that cannot be read, which the CRD's schema refuses, selects none: the ledger
// tells of it as the config's own problem.
func (r *Reconciler) matching(pcmc *v1alpha1.PodConfigMapConfig) []*observed.Pod {
	selector, err := metav1.LabelSelectorAsSelector(pcmc.Spec.LabelSelector())
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(r.Pods.InNamespace(pcmc.Namespace), func(pod *observed.Pod) bool { return !selector.Matches(pod.Labels) })
}

// write writes a status where it differs; again is when to look again though
// nothing changes, zero for never.
func (r *Reconciler) write(ctx context.Context, pcmc *v1alpha1.PodConfigMapConfig, status *v1alpha1.PodConfigMapConfigStatus, present int, again time.Duration) (ctrl.Result, error) {
	r.Metrics.show(pcmc, status, present)
	if !changed(&pcmc.Status, status) {
		return ctrl.Result{RequeueAfter: again}, nil
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
	return ctrl.Result{RequeueAfter: again}, nil
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
type times struct{ written, looked, workingSince, askedSince time.Time }

// reportPatience tells how long a node that has not reported yet may still take.
func (m *memory) reportPatience(config types.NamespacedName, waits bool) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, now := m.configs[config], m.now()
	switch {
	case !waits && t.askedSince.IsZero():
		return 0
	case !waits:
		t.askedSince = time.Time{}
	case t.askedSince.IsZero():
		t.askedSince = now
	}
	m.configs[config] = t
	if !waits {
		return 0
	}
	return max(0, reportPatience-now.Sub(t.askedSince))
}

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
