// SPDX-License-Identifier: Apache-2.0

package configmaps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/apifailure"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/ledger"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
)

// eventAction is the action that Events on pods name.
const eventAction = "SyncConfigMap"

// report collects what became of one pod's steps, and tells it: to the ledger,
// as Events, to the log, and to the queue.
type report struct {
	*Reconciler
	pod       *observed.Pod
	paced     time.Duration // how long all of the pod's updates have to wait
	inherited bool          // from the manager before, and not looked at since
	waitFor   []string
	failures  []failedStep
	// unfinished tells that a step was put off: it may fail yet.
	unfinished bool
	again      time.Duration // 0: not before something changes
}

type failedStep struct {
	*step
	err error
}

func newReport(r *Reconciler, pod *observed.Pod) *report {
	return &report{Reconciler: r, pod: pod, paced: r.pace.wait(pod.Key()), inherited: r.inherited.take(pod.Key())}
}

// wait notes that the pod waits for a ConfigMap's name.
func (r *report) wait(name string) {
	r.waitFor = append(r.waitFor, name)
	r.waiting.set(r.pod.Key(), r.waitFor)
}

// waitNoMore undoes wait.
func (r *report) waitNoMore(name string) {
	r.waitFor = slices.DeleteFunc(r.waitFor, func(n string) bool { return n == name })
}

// putOff leaves an update for later, because the last one was a moment ago.
func (r *report) putOff() {
	r.unfinished = true
	r.requeueAfter(r.paced)
}

// requeueAfter asks for another look, at the latest then.
func (r *report) requeueAfter(d time.Duration) {
	if r.again == 0 || d < r.again {
		r.again = d
	}
}

// done records a step that needs no more: the ConfigMap reflects its config, or
// its failure is known.
func (r *report) done(s *step) {
	if s.config == nil {
		return
	}
	if s.waiting {
		r.Ledger.Record(s.config.UID, r.pod.Name, ledger.Entry{Present: s.present(r.pod.UID)})
		return
	}
	entry := ledger.Entry{Generation: s.config.Generation, Failure: s.failure, Present: true}
	if s.failure != nil {
		entry.Present = s.present(r.pod.UID)
		r.refused(s)
	}
	r.Ledger.Record(s.config.UID, r.pod.Name, entry)
}

// refused tells of a pod whose ConfigMap cannot be as its config wants it.
func (r *report) refused(s *step) {
	why := apifailure.Template
	switch s.failure.Reason {
	case v1alpha1.ReasonNameConflict:
		why = apifailure.NameConflict
		r.waitForHolder(s)
	case v1alpha1.ReasonTooLarge:
		why = apifailure.TooLarge
	}
	if s.failure == s.config.Problem {
		return // the config's own Event and condition tell, once for all pods
	}
	if r.known(s, s.failure) || !r.isThere() {
		return
	}
	r.Metrics.failed(r.pod.Namespace.Value(), why)
	if told := r.inherited && s.config.told == s.failure.Reason; !told {
		r.warn(s.config, s.failure)
	}
}

// waitForHolder has the pod looked at again when the name's holder changes.
func (r *report) waitForHolder(s *step) {
	if left := r.holds.left(holdKey{r.pod.Key(), s.name}); left > 0 {
		r.requeueAfter(left)
	}
	r.wait(s.name)
	now := r.ConfigMaps.Get(types.NamespacedName{Namespace: r.pod.Namespace.Value(), Name: s.name})
	if s.current != nil && s.current.Config.Value() != "" && (now == nil || now.UID != s.current.UID) {
		// It went between the look and the wait, and no event will tell; or the
		// cache is behind.
		r.requeueAfter(minUpdateInterval)
	}
}

// isThere tells whether the pod has not gone meanwhile. What is known of a pod is
// forgotten after it left the cache, so looking here last is safe.
func (r *report) isThere() bool {
	pod := r.Pods.Get(r.pod.Key())
	return pod != nil && pod.UID == r.pod.UID
}

// known tells whether the ledger holds the same failure already.
func (r *report) known(s *step, failure *ledger.Failure) bool {
	entry, _ := r.Ledger.Get(s.config.UID, r.pod.Name)
	return entry.Failure != nil && *entry.Failure == *failure
}

// gone drops what is known of a step whose namespace is going.
func (r *report) gone(s *step) {
	if s.config != nil {
		r.Ledger.Forget(s.config.UID, r.pod.Name)
	}
}

// failed keeps a step's error until all steps are through.
func (r *report) failed(s *step, err error) {
	r.failures = append(r.failures, failedStep{s, err})
}

// finish tells when to look again.
func (r *report) finish(ctx context.Context) ctrl.Result {
	key := r.pod.Key()
	if !r.isThere() {
		defer r.forget(key) // it went meanwhile: what was just recorded goes, too
	}
	for _, name := range r.waiting.set(key, r.waitFor) {
		r.holds.release(holdKey{key, name})
	}
	if len(r.failures) == 0 {
		if !r.unfinished {
			r.retries.Succeeded(key)
		}
		return ctrl.Result{RequeueAfter: r.again}
	}
	var telling error // the first of those that say something about the pod
	for _, f := range r.failures {
		r.Metrics.failed(key.Namespace, apifailure.Within(ctx, f.err))
		if telling == nil || !apifailure.Answered(telling) && apifailure.Answered(f.err) {
			telling = f.err
		}
	}
	why := apifailure.Within(ctx, telling)
	wait, exhausted := r.retries.Failed(key, telling)
	for _, f := range r.failures {
		r.recordFailure(f, exhausted, wait)
	}
	r.logFailures(ctx, why, exhausted, wait)
	r.requeueAfter(wait)
	return ctrl.Result{RequeueAfter: r.again}
}

func (r *report) recordFailure(f failedStep, exhausted bool, wait time.Duration) {
	var failure *ledger.Failure
	if exhausted {
		failure = &ledger.Failure{
			Reason: v1alpha1.ReasonRetriesExhausted,
			Message: fmt.Sprintf("%v; gave up after %d tries in a row, next try within %s",
				f.err, r.retries.Most(), wait),
		}
		if f.config == nil || !r.known(f.step, failure) {
			r.warn(f.config, failure)
		}
	}
	if f.config == nil {
		return
	}
	entry := ledger.Entry{Failure: failure, Present: f.present(r.pod.UID)}
	if exhausted {
		entry.Generation = f.config.Generation
	}
	r.Ledger.Record(f.config.UID, r.pod.Name, entry)
}

func (r *report) logFailures(ctx context.Context, why apifailure.Type, exhausted bool, wait time.Duration) {
	var all []error
	for _, f := range r.failures {
		all = append(all, f.err)
	}
	logger, err := klog.FromContext(ctx), errors.Join(all...)
	switch {
	case exhausted:
		logger.Error(err, "Gave up on a pod for now", "pod", r.pod.Key(), "type", why, "retryIn", wait)
	case why == apifailure.Conflict:
		logger.V(logging.Debug).Info("Looking again: an object changed meanwhile", "pod", r.pod.Key(), "err", err)
	default:
		logging.Warning(logger, "Will try again", "pod", r.pod.Key(), "err", err, "type", why, "retryIn", wait)
	}
}

// warn emits an Event on the pod; config is nil where none asks for the
// ConfigMap any more.
func (r *report) warn(config *Config, failure *ledger.Failure) {
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: r.pod.Namespace.Value(), Name: r.pod.Name, UID: r.pod.UID},
	}
	var related runtime.Object
	if config != nil {
		related = &v1alpha1.PodConfigMapConfig{
			TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "PodConfigMapConfig"},
			ObjectMeta: metav1.ObjectMeta{Namespace: config.Namespace, Name: config.Name, UID: config.UID},
		}
	}
	r.Events.Eventf(pod, related, corev1.EventTypeWarning, failure.Reason, eventAction, "%s", eventnote.Shorten(failure.Message, eventnote.MaxBytes))
}
