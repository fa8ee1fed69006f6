// SPDX-License-Identifier: Apache-2.0

package subsystem

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/podconfigmap/podconfigmap-controller/api/v1alpha1"
	"github.com/podconfigmap/podconfigmap-controller/internal/eventnote"
	"github.com/podconfigmap/podconfigmap-controller/internal/logging"
	"github.com/podconfigmap/podconfigmap-controller/internal/observed"
	"github.com/podconfigmap/podconfigmap-controller/internal/settings"
)

// +kubebuilder:rbac:groups=apps,resources=daemonsets,verbs=get;list;watch;create;update;delete,namespace=system
// +kubebuilder:rbac:groups="",resources=events,verbs=list;watch,namespace=system
// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch,namespace=system
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create,namespace=system

// Reasons of Events on the DaemonSets.
const (
	reasonDeployed = "AgentDeployed"
	reasonUpdated  = "AgentUpdated"
	reasonRemoved  = "AgentRemoved"
	reasonCleaning = "AgentCleaningUp"
	reasonAbsent   = "AgentsAbsent"
	action         = "ManageAgent"
)

const (
	// nudgePeriod is how often refused pods are tried again: by itself the
	// DaemonSet controller waits up to a quarter of an hour.
	nudgePeriod = 30 * time.Second
	// longestRetry bounds the pauses after failures in a row.
	longestRetry = time.Minute
)

// Gate keeps the agents' DaemonSets as they should be while the feature flag is
// on. It is the leader's alone.
type Gate struct {
	// Client reads from caches; Live does not.
	Client   client.Client
	Live     client.Client
	Events   events.EventRecorder
	Settings *settings.Settings
	Board    *Board

	// One worker uses the rest.
	self     *identity
	retiring *removal
}

// Caches are the informers that a Gate needs, of one namespace. None of them
// starts before it is asked for.
func Caches(namespace string) map[client.Object]cache.ByObject {
	here := map[string]cache.Config{namespace: {}}
	failed := fields.AndSelectors(
		fields.OneTermEqualSelector("involvedObject.kind", "DaemonSet"), fields.OneTermEqualSelector("reason", reasonFailedCreate))
	return map[client.Object]cache.ByObject{
		&appsv1.DaemonSet{}:  {Namespaces: here},
		&corev1.Event{}:      {Namespaces: here, Field: failed},
		&v1alpha1.EBPFNode{}: {Namespaces: here},
		&corev1.Pod{}:        {Namespaces: here, Label: labels.SelectorFromSet(agentLabels()), Transform: onlyReadiness},
	}
}

// SetUp adds the Gate's controller to the manager.
func (g *Gate) SetUp(mgr ctrl.Manager) error {
	only := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: g.Settings.PodNamespace, Name: AgentName}}
	ours := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		name := o.GetName()
		switch of := o.(type) {
		case *corev1.Event:
			name = of.InvolvedObject.Name
		case *corev1.Pod:
			name = AgentName // its cache has those of agents only
		}
		if name != AgentName && name != LegacyName {
			return nil
		}
		return []reconcile.Request{only}
	})
	// Where no DaemonSet is, no change of one begins the work.
	begin := source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		queue.Add(only)
		return nil
	})
	err := ctrl.NewControllerManagedBy(mgr).
		Named("agent").
		Watches(&appsv1.DaemonSet{}, ours).
		Watches(&corev1.Event{}, ours).
		Watches(&corev1.Pod{}, ours).
		WatchesRawSource(begin).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1, ReconciliationTimeout: g.Settings.ReconciliationTimeout,
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, longestRetry),
		}).
		Complete(g)
	if err != nil {
		return fmt.Errorf("making the controller of the agents: %w", err)
	}
	return nil
}

// Reconcile brings both DaemonSets to what the settings want.
func (g *Gate) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	if err := g.identify(ctx); err != nil {
		g.Board.Set(State{Problem: err.Error()})
		return ctrl.Result{}, err
	}
	if g.self.image == "" {
		problem := fmt.Sprintf("the agent's image is not known: set RELATED_IMAGE_AGENT, because there is no pod %q in namespace %q to read the manager's own image from",
			g.Settings.PodName, g.Settings.PodNamespace)
		klog.FromContext(ctx).Error(nil, "Cannot deploy the node agents", "reason", problem)
		g.Board.Set(State{Problem: problem})
		return ctrl.Result{}, nil
	}
	seen, err := g.observe(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	state := State{Silent: silent(seen.pods)}
	again := soonest{}
	avoidLegacy := g.Settings.AgentLegacyKernels || seen.sets[LegacyName] != nil
	if err := g.ensure(ctx, standard, avoidLegacy, seen, &state, &again); err != nil {
		return g.failed(err)
	}
	if g.Settings.AgentLegacyKernels {
		g.retiring = nil
		err = g.ensure(ctx, legacy, false, seen, &state, &again)
	} else if seen.sets[LegacyName] != nil || g.retiring != nil {
		err = g.retire(ctx, &state, &again)
	}
	if err != nil {
		return g.failed(err)
	}
	g.Board.Set(state)
	return ctrl.Result{RequeueAfter: again.in}, nil
}

// failed shows why agents cannot be deployed. A conflict is none: the cache is
// behind, and will have the newer object in a moment.
func (g *Gate) failed(err error) (ctrl.Result, error) {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	g.Board.Set(State{Problem: err.Error()})
	return ctrl.Result{}, err
}

// identify reads once who this is: a manager's image and Deployment are the same
// for all of its life.
func (g *Gate) identify(ctx context.Context) error {
	if g.self != nil {
		return nil
	}
	id, err := identify(ctx, g.Live, g.Settings)
	if err != nil {
		return err
	}
	switch {
	case id.owner != nil:
	case g.Settings.PodName == "":
		klog.FromContext(ctx).Info("The manager runs out of a pod; the node agents stay until the feature is turned off")
	default:
		logging.Warning(klog.FromContext(ctx), "The manager does not belong to a Deployment, so nothing will remove the node agents with it",
			"pod", g.Settings.PodNamespace+"/"+g.Settings.PodName)
	}
	g.self = &id
	return nil
}

// seen is what there is.
type seen struct {
	sets   map[string]*appsv1.DaemonSet
	events []corev1.Event
	pods   []corev1.Pod
}

func (g *Gate) observe(ctx context.Context) (*seen, error) {
	s := &seen{sets: map[string]*appsv1.DaemonSet{}}
	for _, v := range variants {
		set := &appsv1.DaemonSet{}
		err := g.Client.Get(ctx, types.NamespacedName{Namespace: g.Settings.PodNamespace, Name: v.name}, set)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("reading DaemonSet %q: %w", v.name, err)
		default:
			s.sets[v.name] = set
		}
	}
	list := &corev1.EventList{}
	if err := g.Client.List(ctx, list, client.InNamespace(g.Settings.PodNamespace)); err != nil {
		return nil, fmt.Errorf("listing Events of DaemonSets: %w", err)
	}
	s.events = list.Items
	pods := &corev1.PodList{}
	if err := g.Client.List(ctx, pods, client.InNamespace(g.Settings.PodNamespace)); err != nil {
		return nil, fmt.Errorf("listing the agents' pods: %w", err)
	}
	s.pods = pods.Items
	return s, nil
}

// ensure writes a DaemonSet where it is not as it should be, and adds to the
// state what it shows.
func (g *Gate) ensure(ctx context.Context, v variant, avoidLegacy bool, seen *seen, state *State, again *soonest) error {
	want := v.desired(*g.self, g.Settings, avoidLegacy)
	print, err := fingerprint(want)
	if err != nil {
		return err
	}
	live, now := seen.sets[v.name], time.Now()
	does, set := decide(live, want, print, now)
	switch does {
	case stepRefuse:
		state.Problem = fmt.Sprintf("DaemonSet %q in namespace %q is not the operator's: delete or rename it", v.name, g.Settings.PodNamespace)
		if g.Board.State().Problem != state.Problem {
			logging.Warning(klog.FromContext(ctx), "Cannot deploy the node agents", "reason", state.Problem)
			g.Events.Eventf(live, nil, corev1.EventTypeWarning, v1alpha1.ReasonNameConflict, action, "%s", state.Problem)
		}
		return nil
	case stepNone:
		return g.judge(ctx, live, seen.events, state, again)
	case stepWait:
		state.rollOut(v.name, now.Add(busyLimit))
		return nil
	default:
		state.rollOut(v.name, now.Add(busyLimit))
		return g.write(ctx, does, live, set, print)
	}
}

// write creates or updates a DaemonSet, and tells why.
func (g *Gate) write(ctx context.Context, does step, live, set *appsv1.DaemonSet, print string) error {
	logger := klog.FromContext(ctx).WithValues("daemonSet", set.Namespace+"/"+set.Name)
	image := set.Spec.Template.Spec.Containers[0].Image
	if does == stepCreate {
		if err := g.Client.Create(ctx, set, client.FieldOwner(observed.FieldManager)); err != nil {
			return fmt.Errorf("creating DaemonSet %q: %w", set.Name, err)
		}
		logger.Info("Deployed the node agents", "image", image)
		g.Events.Eventf(set, nil, corev1.EventTypeNormal, reasonDeployed, action, "deployed the node agents, image %s", image)
		return nil
	}
	if err := g.Client.Update(ctx, set, client.FieldOwner(observed.FieldManager)); err != nil {
		return fmt.Errorf("updating DaemonSet %q: %w", set.Name, err)
	}
	why := reasonOf(does, live, print)
	logger.Info("Updated the node agents", "why", why, "image", image)
	g.Events.Eventf(set, nil, corev1.EventTypeNormal, reasonUpdated, action, "updated the node agents: %s", why)
	if does == stepUpdate {
		set.Annotations[annotationApplied] = applied(set.Generation, print)
		if err := g.Client.Update(ctx, set, client.FieldOwner(observed.FieldManager)); err != nil {
			return fmt.Errorf("noting the generation of DaemonSet %q: %w", set.Name, err)
		}
	}
	return nil
}

func reasonOf(does step, live *appsv1.DaemonSet, print string) string {
	var generation int64
	var before string
	_, _ = fmt.Sscanf(live.Annotations[annotationApplied], "%d %s", &generation, &before)
	switch {
	case does == stepTouch:
		return "its labels or owner were changed"
	case isCleaning(live):
		return "the feature was turned on again while it was being removed"
	case before == print:
		return "somebody had edited it"
	default:
		return "the operator's settings or version changed"
	}
}

// judge reads from a DaemonSet that is as it should be whether its pods get in,
// and whether a roll-out is under way.
func (g *Gate) judge(ctx context.Context, live *appsv1.DaemonSet, events []corev1.Event, state *State, again *soonest) error {
	now := time.Now()
	if until := rollingOut(live); until.After(now) {
		state.rollOut(live.Name, until)
	}
	answer := refusal(live, events, now)
	if answer == "" {
		return nil
	}
	if state.Refused == "" {
		state.Refused = notAdmitted(live.Namespace, answer)
	}
	again.within(nudgePeriod)
	if now.Sub(at(live, annotationRetriedAt)) < nudgePeriod {
		return nil
	}
	if g.Board.State().Refused != state.Refused {
		logging.Warning(klog.FromContext(ctx), "The node agents' pods are not admitted", "daemonSet", live.Namespace+"/"+live.Name, "reason", state.Refused)
		g.Events.Eventf(live, nil, corev1.EventTypeWarning, v1alpha1.ReasonAgentNotAdmitted, action, "%s", eventnote.Shorten(state.Refused, eventnote.MaxBytes))
	}
	set := live.DeepCopy()
	set.Annotations = merged(live.Annotations, map[string]string{annotationRetriedAt: now.UTC().Format(time.RFC3339)})
	if err := g.Client.Update(ctx, set, client.FieldOwner(observed.FieldManager)); err != nil {
		return fmt.Errorf("having the pods of DaemonSet %q tried again: %w", live.Name, err)
	}
	return nil
}

// retire takes the DaemonSet for old kernels away, which is no longer wanted.
func (g *Gate) retire(ctx context.Context, state *State, again *soonest) error {
	if g.retiring == nil {
		g.retiring = &removal{live: g.Live, events: g.Events, namespace: g.Settings.PodNamespace, names: []string{LegacyName}}
	}
	left, err := g.retiring.step(ctx)
	if err != nil {
		return err
	}
	if !left {
		g.retiring = nil
		return nil
	}
	state.Busy, state.BusyUntil = "node agents are being removed", g.retiring.since.Add(busyLimit)
	again.within(removalPeriod)
	return nil
}

func (s *State) rollOut(name string, until time.Time) {
	s.Busy, s.BusyUntil = fmt.Sprintf("DaemonSet %q is being rolled out", name), until.Truncate(time.Second)
}

// soonest is the shortest of several times to wait; zero is for ever.
type soonest struct{ in time.Duration }

func (s *soonest) within(d time.Duration) {
	if s.in == 0 || d < s.in {
		s.in = d
	}
}
